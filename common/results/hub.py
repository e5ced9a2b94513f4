"""Data sets and models of a run on the Hugging Face Hub, where the user asks for it.

    target = Push("me/stories", public=False)
    check(target)                                            # before any work
    push(run.path, ["dataset", "model"], target)             # when all else is done

What is pushed becomes me/stories, as data set and as model, me/stories-preferences and me/stories-proposer. The
Hub compares what it has with what it is offered, so pushing again sends what is missing and no more.
"""

import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from common.errors import UserError

TOKEN = "HF_TOKEN"
"""The variable that the token comes from; it is in no file and no message (`common.secret`)."""
REPOSITORIES = {
    "dataset": ("dataset", ""),
    "preferences": ("dataset", "-preferences"),
    "model": ("model", ""),
    "proposer": ("model", "-proposer"),
}
"""By the folder in the run: the kind of repository, and the end of its name."""
_OUTDATED = ["data/*.parquet", "*.safetensors", "*.safetensors.index.json"]
"""Files of an earlier push that are deleted there unless they are pushed again: their names change."""


class Push(NamedTuple):
    """Where to: NAME, of the token's owner, or OWNER/NAME. A repository that is there already stays as public as
    it is."""

    name: str
    public: bool


def check(target: Push) -> None:
    """Raises UserError for a name that the Hub does not take, without a token, and with the Hub switched off."""
    from huggingface_hub import constants
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(target.name)
        validate_repo_id(target.name + max((end for _, end in REPOSITORIES.values()), key=len))
    except HFValidationError as error:
        said = str(error).partition(": '")[0].rstrip(".")
        raise UserError(f"--push-to-hub {target.name}: give NAME or OWNER/NAME ({said})") from None
    if not os.environ.get(TOKEN):
        raise UserError(
            f"--push-to-hub {target.name} needs a token that may write there, in the variable {TOKEN}: make one "
            "at https://huggingface.co/settings/tokens"
        )
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push-to-hub {target.name}: the Hub is switched off by HF_HUB_OFFLINE: unset it")


def push(run: pathlib.Path, folders: Iterable[str], target: Push) -> list[str]:
    """Send those of the `folders` of a run that have a place in `REPOSITORIES`; returns their addresses.

    Raises UserError, saying that nothing is lost and how to go on, when one cannot be sent.
    """
    from huggingface_hub import HfApi

    api, places = HfApi(token=os.environ[TOKEN]), []
    for folder in (folder for folder in REPOSITORIES if folder in folders):
        kind, end = REPOSITORIES[folder]
        name = target.name + end
        try:
            made = api.create_repo(name, repo_type=kind, private=not target.public, exist_ok=True)
            api.upload_folder(
                repo_id=made.repo_id,
                repo_type=kind,
                folder_path=run / folder,
                commit_message="Made by seedloop",
                delete_patterns=_OUTDATED,
            )
        except Exception as error:  # the Hub's HTTP client, hence its network errors, differs between versions
            raise _failed(run / folder, name, error) from None
        places.append(str(made))
    return places


def _failed(folder: pathlib.Path, name: str, error: Exception) -> UserError:
    refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
    fix = f"give a token that may write there as {TOKEN}" if refused else "check the network"
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"the run is finished, but {folder} could not be pushed to {name} ({said}): {fix} and give the same "
        "command again, which trains nothing anew and pushes what is missing; or upload the folder by hand"
    )
