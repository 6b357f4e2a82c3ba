"""Run folders: settings, provenance, atomic and verified files, locks, resume, progress."""

from keylayers.files.canonical import digest, plain
from keylayers.files.checked import read_json, read_tensors, write_json, write_tensors, write_text
from keylayers.files.digests import file_sha256
from keylayers.runs.checkpoint import Checkpoint
from keylayers.runs.folder import RunFolder, open_run, read_run
from keylayers.runs.given import Given
from keylayers.runs.log import read_log
from keylayers.runs.progress import Progress, note
from keylayers.runs.provenance import git_commit, machine, versions

__all__ = [
    "Checkpoint",
    "Given",
    "Progress",
    "RunFolder",
    "digest",
    "file_sha256",
    "git_commit",
    "machine",
    "note",
    "open_run",
    "plain",
    "read_json",
    "read_log",
    "read_run",
    "read_tensors",
    "versions",
    "write_json",
    "write_tensors",
    "write_text",
]
