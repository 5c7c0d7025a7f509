"""What the user asks for: the typed schema, TOML files and command-line flags. No module here reads data or devices."""
