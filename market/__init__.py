"""The domain: data contracts, market profiles, importers of public data sets, and the simulated world."""
