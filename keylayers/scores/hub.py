"""Score folders: `layer_scores.json` and a model card, saved, loaded and shared on the Hugging Face hub as models are.

One folder holds the scores of one criterion, so that a repository says one thing, and `user/repo` names one ranking.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keylayers.errors import BadInput
from keylayers.files import reason
from keylayers.files.strict_json import write_atomically
from keylayers.scores.card import HUB_ID, is_our_card, model_card
from keylayers.scores.files import FORMAT, load, save
from keylayers.scores.scores import LayerScores

FILE = "layer_scores.json"
CARD = "README.md"
IN_RUNS = "scores.json"
"""What a run folder calls the scores it was made by."""


def save_pretrained(scores: LayerScores, folder: str | os.PathLike[str], *, repo_id: str | None = None) -> Path:
    """Writes `layer_scores.json` and a card into the folder, made if need be; a README that is no such card is kept.

    `repo_id` is what the card tells others to load.

    Raises:
        BadInput: if the folder cannot be written.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise BadInput(f"{place}: cannot be made ({problem.strerror or problem}); name another folder") from problem
    card = place / CARD
    if not card.exists() or is_our_card(card.read_text(encoding="utf-8", errors="replace")):
        write_atomically(card, model_card(scores, repo_id))
    save(scores, place / FILE)
    return place


def from_pretrained(
    place: str | os.PathLike[str], revision: str | None = None, *, token: str | bool | None = None
) -> LayerScores:
    """The scores in a folder, or in a repository of the hub (at a branch, tag or commit).

    Raises:
        BadInput: if there is no such folder, repository, revision or score file, or the hub cannot be reached and has
            not been read before. BadScores or UnknownName: for a file that is not sound.
    """
    folder = Path(place)
    if os.path.isdir(folder):
        if revision is not None:
            raise BadInput(f"{place} is a folder on this machine, which has no revisions; leave the revision out.")
        return load(_in_folder(folder))
    if not HUB_ID.fullmatch(str(place)):
        raise BadInput(f"no folder {str(place)!r}, and it is no repository either: expected a folder or user/repo.")
    return load(_fetched(str(place), FILE, revision, token))


def push_to_hub(
    scores: LayerScores,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload layer scores",
    token: str | bool | None = None,
) -> str:
    """Uploads the scores and their card in one commit, makes the repository if need be; the address of the commit.

    The provenance goes with them as it is, local paths included. A README of the repository that is no such card (of
    the model whose scores these are) is kept.

    Raises:
        BadInput: for a repository id that cannot be, without a token that may write there, or offline.
    """
    import tempfile

    from huggingface_hub import CommitOperationAdd, HfApi

    if not HUB_ID.fullmatch(repo_id):
        raise BadInput(f"cannot upload to {repo_id!r}: expected user/repo.")
    api = HfApi(token=token, library_name="keylayers")
    with tempfile.TemporaryDirectory() as temporary, _in_our_words(f"cannot upload to {repo_id!r}"):
        folder = save_pretrained(scores, temporary, repo_id=repo_id)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        names = [FILE] if _has_own_readme(api, repo_id, revision) else [FILE, CARD]
        changes = [CommitOperationAdd(name, str(folder / name)) for name in names]
        return str(api.create_commit(repo_id, changes, commit_message=commit_message, revision=revision).commit_url)


def load_scores(place: str | os.PathLike[str]) -> LayerScores:
    """The scores a user names: a file, a score folder, a scoring run with one criterion, or a repository of the hub as
    `user/repo` or `user/repo@revision`; what is on this machine goes first.

    Raises:
        BadInput: if it is none of these, or cannot be read. BadScores or UnknownName: for a file that is not sound.
    """
    path, text = Path(place), str(place)
    if os.path.isdir(path):
        return load(_in_folder(path))
    repo_id, _, revision = text.partition("@")
    if os.path.exists(path) or text.endswith(".json") or not HUB_ID.fullmatch(repo_id):
        return load(path)
    return from_pretrained(repo_id, revision or None)


def score_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The score files of a folder: of a score folder one, of a scoring run one per criterion, by name."""
    place = Path(folder)
    for name in (FILE, IN_RUNS):
        if (place / name).is_file():
            return [place / name]
    return [path for path in sorted(place.glob("*.json")) if _begins_as_scores(path)]


def _begins_as_scores(path: Path) -> bool:
    """Whether a file states the format of scores, as `save` does in its first line."""
    if not os.path.isfile(path):
        return False
    with path.open("rb") as file:
        return FORMAT.encode() in file.read(200)


def _in_folder(folder: Path) -> Path:
    found = score_files(folder)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(map(str, found))
        raise BadInput(f"{folder} holds the scores of {len(found)} criteria; name one of them: {names}.")
    raise BadInput(f"{folder} holds no {FILE} and no scores as a scoring run leaves them; name the score file itself.")


def _has_own_readme(api: Any, repo_id: str, revision: str | None) -> bool:
    """Whether the repository has a README that somebody wrote."""
    if not api.file_exists(repo_id, CARD, revision=revision):
        return False
    path = api.hf_hub_download(repo_id, CARD, revision=revision)
    return not is_our_card(Path(path).read_text(encoding="utf-8", errors="replace"))


def _fetched(repo_id: str, name: str, revision: str | None, token: str | bool | None) -> Path:
    from huggingface_hub import hf_hub_download

    shown = repo_id if revision is None else f"{repo_id}@{revision}"
    with _in_our_words(f"cannot load {shown!r}, which is no file or folder here"):
        return Path(hf_hub_download(repo_id, name, revision=revision, token=token, library_name="keylayers"))


@contextmanager
def _in_our_words(deed: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into BadInput with a remedy."""
    from huggingface_hub import errors

    # Failed connections are raised as its HTTP library has them, and which library that is differs between versions.
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    unreachable = (
        f"{deed}: the hub is out of reach (offline, or HF_HUB_OFFLINE is set) and its cache has no answer; go online, "
        "or use a file or folder on this machine."
    )
    try:
        yield
    except BadInput:
        raise
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as problem:
        raise BadInput(unreachable) from problem
    except errors.GatedRepoError as problem:
        raise BadInput(f"{deed}: it is gated; ask for access on its page, then `hf auth login`.") from problem
    except errors.RepositoryNotFoundError as problem:
        raise BadInput(f"{deed}: the hub has no such repository, or it is private (`hf auth login`).") from problem
    except errors.RevisionNotFoundError as problem:
        raise BadInput(f"{deed}: it has no such revision; name a branch, tag or commit of it.") from problem
    except errors.EntryNotFoundError as problem:
        raise BadInput(f"{deed}: it holds no {FILE}; scores.push_to_hub(...) puts one there.") from problem
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as problem:
        hint = "; `hf auth login` with a token that may write there" if _forbidden(problem) else ""
        raise BadInput(f"{deed}: {reason(problem)}{hint}") from problem
    except http_error as problem:
        raise BadInput(unreachable) from problem


def _forbidden(problem: Exception) -> bool:
    return getattr(getattr(problem, "response", None), "status_code", None) in (401, 403)
