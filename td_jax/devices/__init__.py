"""Devices: one or many, one process or several."""
