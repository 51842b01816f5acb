"""The front door: command line, settings, device detection."""
