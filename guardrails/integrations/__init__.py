"""The edge: what meets other libraries. Each module imports its own, and nothing else imports it."""
