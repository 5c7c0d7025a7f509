"""What people read: the console while a run trains, and its pages, tables and figures."""
