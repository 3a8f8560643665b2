"""The hypervisors behind one small door. Everything that differs between them lives here."""
