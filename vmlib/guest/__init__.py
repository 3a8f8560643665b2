"""What speaks inside a guest and to it: the wire, the agent that the seed brings along, the host's end of a session."""
