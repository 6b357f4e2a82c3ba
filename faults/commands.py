"""The commands that are tried, at their smallest; each works in a folder of its own, beside which the inputs lie."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from keylayers.errors import UnknownName

IN = "../inputs"
DIGITS = "--model keylayers.models.digits:digits_resnet"
SMALL = f"--model {IN}/model --data {IN}/records.jsonl --max-length 32"


@dataclass(frozen=True)
class Command:
    """A command line, what it leaves, and what goes on from that."""

    name: str
    words: str
    outcome: str = "out"
    """File or folder it writes."""
    uses: tuple[str, ...] = ()
    """Commands that read the outcome and write `used` or print what they found."""
    heavy: bool = True
    """Whether it imports torch."""
    run_folder: bool = True
    """Whether the outcome can be resumed, and started over with --fresh."""

    def argv(self, *more: str) -> list[str]:
        """The command line without the program's name."""
        return [*self.words.split(), *more]


COMMANDS = (
    Command("compare", f"compare {IN}/first.json {IN}/second.json --out out", heavy=False),
    Command(
        "score",
        f"score learned_mask {SMALL} --steps 52 --batch-size 2 --rank 2 --set steps=30 --set save_every=5 --out out",
        uses=(
            f"score delta_norm {SMALL} --tuned out --out used",
            f"export out/learned_mask.json --model {IN}/model --to peft",
            f"tune {SMALL} --scores out/learned_mask.json --steps 2 --batch-size 2 --rank 2 --out used",
            "report out --out used.html",
        ),
    ),
    Command(
        "score, several",
        f"score path_integral fisher delta_norm random {SMALL} --steps 4 --batch-size 4 --rank 2 --out out",
        uses=("compare out/path_integral.json out/fisher.json --out used", "report out --out used.html"),
    ),
    Command("score, weights", f"score condition_number --model {IN}/model --out out.json", outcome="out.json"),
    Command(
        "tune",
        f"tune {SMALL} --scores {IN}/first.json --select top:30% --against random:30% --steps 52 --batch-size 1 "
        "--rank 2 --out out",
        uses=(f"score delta_norm {SMALL} --tuned out/tuned --out used", "report out --out used.html"),
    ),
    Command(
        "tune, full",
        f"tune {SMALL} --scores {IN}/first.json --select top:30% --method full --steps 4 --batch-size 2 --lr 1e-3 "
        "--lr 3e-3 --seeds 2 --out out",
        uses=(f"score delta_norm {SMALL} --tuned out/tuned --out used",),
    ),
    Command(
        "share",
        f"share {IN}/first.json {SMALL} --tuned {IN}/tuned --points 4 --held-out 8 --out out",
    ),
    Command(
        "revert",
        f"revert --model {IN}/model --tuned {IN}/tuned --scores {IN}/first.json --out out",
        uses=(f"score delta_norm {SMALL} --tuned out --out used",),
        run_folder=False,
    ),
    Command(
        "export",
        f"export {IN}/first.json --model {IN}/model --to peft --to axolotl --to mergekit --tuned {IN}/tuned "
        "--select top:30% --out out",
        run_folder=False,
    ),
    Command(
        "transfer",
        f"transfer {IN}/first.json --to bundled:llama-shallow --out out.json",
        outcome="out.json",
        uses=("export out.json --model bundled:llama-shallow --to spectrum", "compare out.json out.json --out used"),
        run_folder=False,
    ),
    Command("report", f"report {IN}/run --out out.html", outcome="out.html", run_folder=False),
    Command(
        "doctor",
        f"doctor {IN}/model --seq 16 --batch 2 --records 8 --sample 2 --out out.json",
        outcome="out.json",
        run_folder=False,
    ),
    Command(
        "harden",
        f"harden {DIGITS} --data {IN}/clean.npz --epochs 2 --steps 1 --batch-size 100 --reselect 1 --out out",
    ),
    Command("cleanse", f"cleanse {DIGITS} --clean {IN}/clean.npz --epochs 2 --batch-size 100 --out out"),
    Command("screen", f"screen {DIGITS} --data {IN}/stream.npz --clean {IN}/clean.npz --out out"),
    Command(
        "league",
        f"league --model {IN}/model --data {IN}/records.jsonl --criterion random --budget 30% --seeds 2 --lr 1e-2 "
        "--steps 2 --batch-size 4 --rank 2 --records 24 --held-out 8 --max-length 32 --processes 1 --out out",
    ),
    Command(
        "league, workers",
        f"league --model {IN}/model --data {IN}/records.jsonl --criterion random --budget 30% --seeds 2 --lr 1e-2 "
        "--steps 2 --batch-size 4 --rank 2 --records 24 --held-out 8 --max-length 32 --processes 2 --out out",
    ),
)


def chosen(names: Iterable[str]) -> Sequence[Command]:
    """The commands of those names, all without any. Raises UnknownName."""
    known = {command.name: command for command in COMMANDS}
    for name in names:
        if name not in known:
            raise UnknownName("command", name, known)
    return [known[name] for name in names] or COMMANDS


def outcome(command: Command, folder: Path) -> Path:
    """Where the command leaves what it found."""
    return folder / command.outcome
