"""Metrics, baselines and benchmark protocols that judge every release."""
