"""The command line: turns a user's mistake into one sentence and exit status 2.

Hydra reports some mistakes with a stack trace and others with advice that is wrong here; this module runs its
main function with full errors on and phrases them itself. Anything that is not a user's mistake keeps its trace.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from softgate import errors, locks
from softgate.cli import exits, stops
from softgate.cli.exits import FAILED, TRACED, refuse
from softgate.cli.named_runs import named
from softgate.cli.words import for_hydra, nearest, own_configs
from softgate.errors import JobFailed, SoftgateError
from softgate.quoting import quoted

OPTIONAL = ("alignment", "experiment", "debug", "paths")
"""Groups that may be left without a choice."""


def run(main: Callable[[], Any], config_dir: str, config_name: str) -> None:
    """Runs a `@hydra.main` function as a command and exits with its status.

    0 is success, 1 a sweep in which a job did not finish, 2 a mistake in what was asked for, 3 a run that diverged, 4
    what could not be written, 5 memory that ran out, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP; other errors raise. Of
    several ranks all have the status of the one that failed, 137 where it was killed.
    """
    stops.watch(config_name)
    _speak_any_letters()
    flags = [word for word in sys.argv[1:] if word in ("-m", "--multirun")]
    # Hydra takes no null for a group, and these have no other default.
    empty = [f"{group}=null" for group in OPTIONAL]
    words = [word for word in sys.argv[1:] if word not in (*flags, *empty)]
    # Hydra wants -m in front, and spells "the group surrogate at the place readout" with an @.
    words = [re.sub(r"^readout=", "surrogate@readout=", word) for word in words]
    try:
        words = named(words, config_name)
    except SoftgateError as error:
        refuse(str(error), error.status)
    words = [*for_hydra([_of_any_path(word) for word in words]), *own_configs(words, Path(config_dir))]
    sys.argv[1:] = flags + words
    sys.path.append(str(Path.cwd()))  # plugins=[my_gates] finds my_gates.py where the command is typed
    for word in words:
        _check_choice(word, Path(config_dir))
    try:
        if config_name == "train":
            _place(bool(flags))
            sys.argv[1:] = flags + _completed(sys.argv[1 + len(flags) :], bool(flags), Path(config_dir))
        with _full_errors():
            main()
    except KeyboardInterrupt as stop:
        _concluded(bool(flags), stopped=True)
        sys.exit(stops.current.stopped(stops.number_of(stop)))
    except (HydraException, OmegaConfBaseException) as error:
        if TRACED:
            raise
        refuse(_explain(error, config_dir, config_name))
    except SoftgateError as error:  # of a sweep; a job's own are phrased by `job`
        _concluded(bool(flags))
        refuse(str(error), error.status)
    except OSError as error:  # Hydra writes files of its own before a job begins
        if TRACED or error.errno not in errors.FULL:
            raise
        refuse(exits.unwritten(error), exits.DISK)
    except JobFailed:
        pass  # the table says so
    finally:
        locks.release()
    if not _concluded(bool(flags)):
        sys.exit(FAILED)


def _speak_any_letters() -> None:
    """Lets every stream take every letter, and refuses paths that this terminal's encoding cannot tell."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for word in (str(Path.cwd()), *sys.argv[1:]):
        try:
            word.encode()
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            refuse(f"{word}: it has letters that are not of this terminal's encoding, {encoding}; set LC_ALL=C.UTF-8.")


def _of_any_path(word: str) -> str:
    """The word by which Lightning tells its ranks the run's directory, also where a quote is in its path."""
    start, end = 'hydra.run.dir="', '"'
    if "LOCAL_RANK" not in os.environ or not word.startswith(start):
        return word
    return f"hydra.run.dir={quoted(Path(word.removeprefix(start).removesuffix(end)))}"


@contextmanager
def _full_errors() -> Iterator[None]:
    """Makes Hydra raise instead of printing and exiting."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _place(swept: bool) -> None:
    """Settles where this command writes, where Hydra's clock would be wrong."""
    from softgate.cli import ranks
    from softgate.cli.sweep import resume, watchdog

    watchdog.follow_parent()
    sys.argv += ranks.agree(sys.argv[1:])
    if swept:
        sys.argv += resume.directory(sys.argv[1:])


def _concluded(swept: bool, stopped: bool = False) -> bool:
    """Prints a sweep's table; false where a job in it did not finish."""
    if not swept:
        return True
    from softgate.cli.sweep.launch import Sweep

    return Sweep.latest is None or Sweep.latest.conclude(stopped)


def _completed(words: list[str], several: bool, configs: Path) -> list[str]:
    if not any(word.startswith(("resume=", "hydra.run.dir=")) for word in words):
        return words
    from softgate.training import resume  # brings in torch, which --help can do without

    return resume.complete(words, several, configs)


def _check_choice(word: str, config_dir: Path) -> None:
    """Refuses `group=null` for a group that must have a choice; Hydra would fail with a stack trace."""
    group, given, choice = word.partition("=")
    if given and choice in ("null", "", "[]") and group not in OPTIONAL and (config_dir / group).is_dir():
        allowed = sorted(path.stem for path in (config_dir / group).glob("*.yaml") if path.stem != "default")
        refuse(f"{group}={choice}: one of its choices is needed: {', '.join(allowed)}.")


def _explain(error: BaseException, config_dir: str, config_name: str) -> str:
    """One sentence for what Hydra or OmegaConf found wrong."""
    text = _whole(error)
    if isinstance(error, OverrideParseException):
        key, _, value = str(error.override).partition("=")
        odd = any(mark in value for mark in "= []{}(),") and '"' not in value
        hint = f""" Quote a value that has such marks twice: '{key}="{value}"'.""" if key and odd else ""
        return f"{error.override}: cannot be read as KEY=VALUE ({text.splitlines()[0]}).{hint}"
    several = re.search(r"Ambiguous value for argument '([^=]+)=(.*?)'\n", text)
    if several:
        key, values = several.groups()
        return f"{key}={values}: several values make a sweep; add -m to the command, or give one value."
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown and (Path(config_dir) / unknown[1]).is_dir():
        return _foreign_group(unknown[1], Path(config_dir), config_name)
    if unknown:
        return _unknown_key(unknown[1], config_dir, config_name)
    group = re.search(r"Could not find '((?:hydra/)?[^'/]+)/([^']+)'", text)
    if group:
        name, choice = group.groups()
        options = re.findall(r"\t(\S+)", text.split("Available options", 1)[-1].split("Config search path")[0])
        options = sorted({*options, *_nested(Path(config_dir) / name)})
        near = [each for each in options if each.endswith(f"/{choice}")] or get_close_matches(choice, options, n=1)
        hint = f" Did you mean {name}={near[0]}?" if near else ""
        return f"{name}={choice}: there is no such choice; allowed: {', '.join(options)}.{hint}"
    group = re.search(r"Could not load '([^'/]+)/([^'/]+)'", text)  # one of a list of choices
    if group and (Path(config_dir) / group[1]).is_dir():
        options = sorted(path.stem for path in (Path(config_dir) / group[1]).glob("*.yaml") if path.stem != "default")
        return str(errors.unknown(group[1], group[2], options))
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing[1]} is not set; give it on the command line as {missing[1]}=..."
    group = re.search(r"Could not override '?([^'\s]+)'?\.\s*No match in the defaults list", text)
    if group:
        return f"{group[1]}: there is no such group."
    return text


def _nested(group: Path) -> list[str]:
    """The choices of a group in folders of it, such as study/A; `base` and `default` are what they share."""
    found = [path for path in group.glob("*/*.yaml") if path.stem not in ("base", "default")]
    return [f"{path.parent.name}/{path.stem}" for path in found]


def _whole(error: BaseException) -> str:
    parts = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        parts.append(str(error))
    return "\n".join(parts)


def _groups(configs: Path, command: str) -> list[str]:
    """The groups that a command chooses from."""
    config: Any = OmegaConf.load(configs / f"{command}.yaml")
    keys = [str(key) for entry in config.defaults if isinstance(entry, DictConfig) for key in entry]
    return sorted({key.removeprefix("override ").partition("@")[0] for key in keys})


def _foreign_group(group: str, configs: Path, command: str) -> str:
    """The sentence for a group of another command."""
    own = [name for name in _groups(configs, command) if not name.startswith("hydra/")]
    word = next((word for word in sys.argv[1:] if word.startswith(f"{group}=")), group)
    owners = [path.stem for path in sorted(configs.glob("*.yaml")) if group in _groups(configs, path.stem)]
    hint = "".join(f" Did you mean {name}={group}?" for name in own if (configs / name / f"{group}.yaml").is_file())
    other = f", it is one of softgate {' and '.join(owners)}" if owners else ""
    return f"{word}: softgate {command} has no group {group}{other}; allowed groups: {', '.join(own)}.{hint}"


def _unknown_key(key: str, config_dir: str, config_name: str) -> str:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    # What is allowed depends on the groups that were chosen: none has no temperature, excitation has.
    own = _groups(Path(config_dir), config_name)
    chosen = [word for word in sys.argv[1:] if word.partition("=")[0] in own and "," not in word]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir, version_base="1.3"):
        config = compose(config_name, overrides=chosen)
    known = list(_paths(config))
    group, _, option = key.partition(".")
    if option and group in OPTIONAL and group not in known and (Path(config_dir) / group).is_dir():
        choices = sorted(path.stem for path in (Path(config_dir) / group).glob("*.yaml"))
        return f"{key}: {group} is not chosen; choose it too: {', '.join(f'{group}={each}' for each in choices)}."
    if key.startswith("hydra.launcher."):
        chosen = [word.partition("=")[2] for word in sys.argv[1:] if word.startswith("hydra/launcher=")]
        launcher = Path(config_dir) / "hydra" / "launcher" / f"{(chosen or ['processes'])[-1]}.yaml"
        options: Any = OmegaConf.load(launcher) if launcher.is_file() else {}
        known = [f"hydra.launcher.{name}" for name in options if not str(name).startswith("_")]
    parent, siblings = key, list[str]()
    while parent and not siblings:  # the nearest part of the key that there is
        parent = parent.rpartition(".")[0]
        siblings = sorted(path for path in known if path.rpartition(".")[0] == parent)
    hint = f" Did you mean {meant}?" if (meant := nearest(key, known)) else ""
    where = f"allowed under {parent}: " if parent and siblings else "allowed: "
    listed = siblings or sorted(path for path in known if "." not in path)
    return f"{key}: there is no such option; {where}{', '.join(s.rpartition('.')[2] for s in listed)}.{hint}"


def _paths(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        path = f"{prefix}{key!s}"
        yield path
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not OmegaConf.is_missing(config, key) and not node._is_none():
            yield from _paths(node, f"{path}.")
