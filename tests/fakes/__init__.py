"""Stand-ins that tests put where the real parts are."""
