"""Sensors: what Dagster's daemon does by itself once they are switched on."""
