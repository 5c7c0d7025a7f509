"""The parts of the fault campaign, which `tests/fault_campaign.py` runs."""
