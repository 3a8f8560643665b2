"""Makes what is handed to operators: a wheel, a one-file executable and a Debian package."""
