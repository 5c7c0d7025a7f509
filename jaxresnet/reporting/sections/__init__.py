"""The parts of a report's page, each made from the records of a run or its network."""
