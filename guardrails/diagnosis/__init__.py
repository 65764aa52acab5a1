"""What a server says about its connections: asked, judged, told. For ``guardrails diagnose``."""
