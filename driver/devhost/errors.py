"""What can go wrong in the embedded host, sorted by what the command's exit code says about it."""

from pathlib import Path


class DevHostError(Exception):
    """Base of everything the embedded host raises on purpose. One line, but for lists of complaints."""


class JobFileError(DevHostError):
    """The job file cannot be read, or asks for something that the embedded host does not do."""

    def __init__(self, problem: str, *, path: Path, line: int) -> None:
        super().__init__(f"{path}:{line}: {problem}")
        self.problem = problem
        self.line = line


class AgentFileError(DevHostError):
    """The agent file cannot be read, or its plugin block does not fit the schema."""


class SchemaError(DevHostError):
    """A config body does not fit the plugin's schema. `complaints` has all of them, in Nomad's words."""

    def __init__(self, complaints: list[str]) -> None:
        super().__init__("; ".join(complaints))
        self.complaints = complaints


class PluginError(DevHostError):
    """The plugin process did not start, or does not behave as a plugin."""


class ArtifactError(DevHostError):
    """An artifact could not be brought."""
