"""One fault tried: what the command did under it, what the same command gives afterwards, what is wrong with that."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from faults.child import Ended, run
from faults.commands import Command
from faults.kinds import Kind
from faults.picture import IDENTITY, Picture, differences, half_files, leftovers, picture

USED = ("used", "used.html")
SHOWN = 400
NOTHING = "nothing stored yet"
"""Where a file should have been damaged; such a trial does not count."""


@dataclass(frozen=True)
class Usual:
    """An uninterrupted run of a command, which every other is compared with."""

    ended: Ended
    picture: Picture
    restless: tuple[str, ...]
    """Files that two uninterrupted runs write differently; they are left out of comparisons."""
    kept: Path
    """A copy of all it left."""
    used: tuple[tuple[Ended, Picture], ...]
    """What each of the command's uses gives."""


@dataclass(frozen=True)
class Verdict:
    """What became of one fault."""

    number: int
    command: str
    kind: str
    detail: str
    wrong: tuple[str, ...]
    """Empty: survived. Each text begins with its sort: differs, silent, half, traceback, left, stuck, refused."""


def look(command: Command, folder: Path) -> Usual:
    """Runs the command twice, undisturbed. Raises RuntimeError where it fails by itself."""
    ended = _anew(command, folder)
    first = picture(folder / command.outcome)
    kept = folder.with_name(f"{folder.name}.kept")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept)
    used = []
    for words in command.uses:
        _forget_uses(folder)
        done = run(words.split(), folder)
        if done.status != 0:
            raise RuntimeError(f"{words}: {done.status}\n{done.said}")
        used.append((done, _used(folder)))
    ended = _anew(command, folder)
    restless = tuple(line.split()[0] for line in differences(first, picture(folder / command.outcome)))
    return Usual(ended, first, restless, kept, tuple(used))


def tried(number: int, seed: int, command: Command, kind: Kind, usual: Usual, folder: Path) -> Verdict:
    """Tries one fault of the kind; the seed and the number decide which."""
    draws = random.Random(f"{seed}/{number}")
    trial = Trial(command, kind, usual, folder, draws)
    wrong = tuple(trial.hit() if kind.draw else trial.damage())
    return Verdict(number, command.name, kind.name, trial.detail, wrong)


@dataclass
class Trial:
    """The parts of a trial; each yields what is wrong."""

    command: Command
    kind: Kind
    usual: Usual
    folder: Path
    draws: random.Random
    detail: str = ""

    @property
    def outcome(self) -> Path:
        return self.folder / self.command.outcome

    def hit(self) -> Iterator[str]:
        """The command hit while it runs, and run again."""
        assert self.kind.draw
        _empty(self.folder)
        blow = self.kind.draw(self.draws, self.usual.ended)
        self.detail = str({key: value for key, value in vars(blow).items() if value})
        under = run(self.command.argv(), self.folder, blow)
        yield from self._bearing(under)
        other = self._other() if under.status == 0 else []
        other = [line for line in other if "/checkpoint-" not in line]  # a state that could not be deleted is no result
        if "report could not be" in under.said:  # made, or drawn: that is said, and the results stand
            other = [line for line in other if not line.startswith(("report/", "out.html"))]
        if other:
            yield f"silent: exit 0 under the fault, but {'; '.join(other[:3])}"
        yield from self._state()
        if self.kind.ends_by_itself and (left := leftovers(self.folder)):
            yield f"left: {', '.join(left[:3])} after a command that could tidy up"
        yield from self._again()

    def damage(self) -> Iterator[str]:
        """A stored file damaged; then the run is verified, repeated or used."""
        assert self.kind.hurt
        _empty(self.folder)
        if self.kind.killed_first:
            from faults.kinds import KINDS

            draw = KINDS[1].draw
            assert draw
            run(self.command.argv(), self.folder, draw(self.draws, self.usual.ended))
        else:
            shutil.rmtree(self.folder)
            shutil.copytree(self.usual.kept, self.folder)
        files = _files(self.outcome)
        if not files:
            self.detail = NOTHING
            return
        file = self.draws.choice(files)
        name = str(file.relative_to(self.folder))
        self.detail = f"{name}: {self.kind.hurt(self.draws, file)}"
        named = self._verified(file)
        use = self.draws.randrange(-1, len(self.usual.used)) if not self.kind.killed_first else -1
        if use >= 0:
            yield from self._used_after(use, file)
        else:
            yield from self._repeated_after(file, named)

    def _bearing(self, ended: Ended) -> Iterator[str]:
        if ended.status is None:
            yield "stuck: it had to be killed"
        if ended.traceback and not (self.kind.starves and "emory" in ended.said.strip().splitlines()[-1]):
            yield f"traceback: {ended.said.strip()[-SHOWN:]}"
        if ended.orphans:
            yield f"left: {ended.orphans} processes outlived it"

    def _state(self) -> Iterator[str]:
        if half := half_files(picture(self.outcome)):
            yield f"half: {'; '.join(half[:2])[:SHOWN]}"

    def _other(self, but: str = "") -> list[str]:
        """How the outcome differs from an uninterrupted run's."""
        left_out = {*self.usual.restless, but}
        found = differences(self.usual.picture, picture(self.outcome))
        return [line for line in found if line.rpartition(" ")[0].removesuffix(" is") not in left_out]

    def _again(self) -> Iterator[str]:
        """The same command, undisturbed, must end where an uninterrupted one does."""
        if not self.command.run_folder and self.outcome.exists() and not self._other():
            return  # it had ended; what exists is refused
        ended = run(self.command.argv(), self.folder)
        yield from self._bearing(ended)
        if ended.status != 0:
            yield f"refused: the same command afterwards: {ended.status} {ended.said.strip()[-SHOWN:]}"
        elif other := self._other():
            yield f"differs: after the same command: {'; '.join(other[:4])}"
        if left := leftovers(self.folder):
            yield f"left: {', '.join(left[:3])} after the same command"

    def _verified(self, file: Path) -> bool:
        """Whether `keylayers verify` names the file."""
        if not self.command.run_folder:
            return False
        ended = run(["verify", self.command.outcome], self.folder)
        return ended.status != 0 and file.name in ended.said

    def _repeated_after(self, file: Path, named: bool) -> Iterator[str]:
        """The same command over a damaged file: names it, or gives what an undamaged run gives."""
        own = str(file.relative_to(self.outcome)) if file != self.outcome else file.name
        ended = run(self.command.argv(), self.folder)
        yield from self._bearing(ended)
        if ended.status != 0:
            if file.name not in ended.said and not self._refuses_what_exists(ended):
                yield f"silent: it does not name the file: {ended.status} {ended.said.strip()[-SHOWN:]}"
            if self.command.run_folder and (file.name != "run.json" or file.exists()):  # else it is no run any more
                again = run(self.command.argv("--fresh"), self.folder)
                if again.status != 0 or (other := self._other()):
                    why = again.said.strip()[-SHOWN:] if again.status else "; ".join(other[:4])
                    yield f"differs: with --fresh: {again.status} {why}"
        elif other := self._other(own if named else ""):
            yield f"silent: exit 0 over a damaged file, but {'; '.join(other[:4])}"

    def _refuses_what_exists(self, ended: Ended) -> bool:
        return not self.command.run_folder and "exists" in ended.said

    def _used_after(self, use: int, file: Path) -> Iterator[str]:
        """A command that reads the outcome: names the damaged file, or finds what it finds in an undamaged one."""
        words, (usual, found) = self.command.uses[use], self.usual.used[use]
        self.detail += f"; then {words.split()[0]}"
        ended = run(words.split(), self.folder)
        yield from self._bearing(ended)
        if ended.status != 0:
            if file.name not in ended.said and file.parent.name not in ended.said:
                yield f"silent: {words.split()[0]} does not name the file: {ended.said.strip()[-SHOWN:]}"
        elif other := differences(found, _used(self.folder)):
            if file.name not in ended.said:
                yield f"silent: {words.split()[0]} exits 0 over a damaged file, but {'; '.join(other[:4])}"
        elif not found and ended.said != usual.said:
            yield f"silent: {words.split()[0]} exits 0 over a damaged file, but says something else"


def _anew(command: Command, folder: Path) -> Ended:
    _empty(folder)
    ended = run(command.argv(), folder)
    if ended.status != 0:
        raise RuntimeError(f"{command.words}: {ended.status}\n{ended.said}")
    return ended


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _files(outcome: Path) -> list[Path]:
    """What can be damaged: files with something in them that are in their final place."""
    every = [outcome] if outcome.is_file() else sorted(outcome.rglob("*"))
    return [path for path in every if path.is_file() and path.stat().st_size and not path.name.startswith(".")]


def _forget_uses(folder: Path) -> None:
    shutil.rmtree(folder / "used", ignore_errors=True)
    (folder / "used.html").unlink(missing_ok=True)


def _used(folder: Path) -> Picture:
    return {f"{name}/{key}": value for name in USED for key, value in picture(folder / name, but=IDENTITY).items()}
