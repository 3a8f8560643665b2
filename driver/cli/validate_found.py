"""What `chv validate` finds, and how a key of a complaint is found in the file again."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from driver.decode import Complaint, show
from driver.devhost.lined import Lined, line_of, value_at
from driver.schema import Key, Members, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One complaint. The keys are a contract."""

    file: str
    line: int
    task: str  # JOB/GROUP/TASK; "" = not about a task
    key: str  # "" = the file as a whole
    value: str  # "" = none worth showing
    expected: str

    def __str__(self) -> str:
        what = str(Complaint(self.key, self.value, self.expected)) if self.key else self.expected
        return f"{self.file}:{self.line}: {f'{self.task}: ' if self.task else ''}{what}"


@dataclass(slots=True, kw_only=True)
class Report:
    """One file. `what` says what was looked at."""

    file: str
    found: list[Found] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    what: str = ""

    def add(self, line: int, key: str, expected: str, *, value: str = "", task: str = "") -> None:
        one = Found(file=self.file, line=line, task=task, key=key, value=value, expected=expected)
        if one not in self.found:
            self.found.append(one)

    def sorted(self) -> "Report":
        self.found.sort(key=lambda one: one.line)
        return self


def of_schema(
    report: Report, complaints: Iterable[tuple[str, str]], body: Lined, members: Members, *, task: str = ""
) -> None:
    """What Nomad itself says of names and types, in its words; a secret is not shown."""
    secret = {name for name, member in walk(members) if isinstance(member, Key) and member.secret}
    for path, text in complaints:
        value = value_at(body, path)
        shown = "" if value is None or isinstance(value, dict | list) else show(value, secret=path in secret)
        report.add(line_of(body, path), path, text, value=shown, task=task)
