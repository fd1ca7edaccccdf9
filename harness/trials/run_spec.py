"""What a run is to do: a profile read and put in order, or a run that was cut short and goes on."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from harness.contracts.run_records import Outcome, RunManifest, Trial
from harness.errors import HarnessError
from harness.runs.store import RunFolder, run_name
from harness.trials.estimate import assumptions
from harness.trials.kinds.release_switch import with_pins
from harness.trials.preflight import Options, Setting, make_manifest
from harness.trials.profile.order import arrange, shuffle_seed
from harness.trials.profile.profile import Profile, load_profile
from harness.trials.progress import duration
from harness.trials.resume import (
    Unfinished,
    check_same_cluster,
    drop_unfinished,
    read_unfinished,
    unfinished_run,
)


@dataclass(frozen=True)
class Begun:
    """A run before it has touched anything."""

    run: str
    """Name of its folder."""
    profile_name: str
    text: str
    profile: Profile
    """Trials in the order they run."""
    seed: int | None
    earlier: Unfinished | None = None

    @property
    def done(self) -> list[Trial]:
        """Trials that an earlier part of the run finished."""
        return self.earlier.done if self.earlier else []


def begin(options: Options) -> Begun:
    """Read what was asked for.

    Raises:
        HarnessError: the profile is wrong, a pin cannot be tried, or there is no such run to go on with.
    """
    if options.resume:
        earlier = read_unfinished(options.resume, options.reports, options.inventory)
        was = earlier.manifest
        return Begun(was.run, was.profile, was.profile_text, earlier.profile, was.seed, earlier)
    name, text, profile = load_profile(options.profile, options.models)
    seed = shuffle_seed(profile, options.seed)
    profile = profile.model_copy(update={"trials": arrange(profile, seed)})
    if options.pins:
        profile = with_pins(profile, options.pins, _pinned_model(profile))
    return Begun(run_name(datetime.now(UTC), name), name, text, profile, seed)


def _pinned_model(profile: Profile) -> str:
    model = next((ask.model for ask in profile.questions if ask.ask == "pins" and ask.model), None)
    if model is None:
        raise HarnessError("--pins needs a profile with a question 'pins', as founding has it")
    return model


def announce(say: Callable[[str], None], options: Options, begun: Begun, setting: Setting) -> None:
    """Print what will run and how long it takes."""
    count, done, profile = len(begun.profile.trials), len(begun.done), begun.profile
    known = setting.estimates_known
    basis = f"{known} of {count} trials timed in earlier runs" if known else assumptions()
    total = sum(setting.estimates_s[done:])
    if begun.earlier:
        left = f"{done} of {count} trials are done, about {duration(total)} left ({basis})"
        say(f"Run {begun.run} goes on: {left}")
    else:
        if cut := unfinished_run(options.reports, options.inventory):
            where = f" --inventory {options.inventory} --reports {options.reports}"
            say(f"Run {cut} was cut short; `harness run benchmark --resume {cut}{where}` goes on with it")
        say(f"Profile {begun.profile_name}: {count} trials, about {duration(total)} ({basis})")
    if profile.deadline_s is not None and total > profile.deadline_s:
        say(f"warning: the run ends after {duration(profile.deadline_s)}, its deadline")
    if begun.seed is not None:
        say(f"Order shuffled with seed {begun.seed} (--seed {begun.seed} gives it again)")


def open_folder(begun: Begun, options: Options, setting: Setting) -> tuple[RunFolder, RunManifest]:
    """The run's folder with its manifest written.

    Raises:
        HarnessError: it cannot be made or written, or the cluster is not the one that the run began on.
    """
    if begun.earlier is None:
        folder = RunFolder.create(options.reports, begun.run)
        manifest = make_manifest(begun.run, begun.profile_name, begun.text, options, setting, begun.seed)
        manifest = manifest.model_copy(update={"steps": begun.profile.model_dump(mode="json")})
    else:
        was = begun.earlier.manifest
        check_same_cluster(begun.earlier, setting.facts)
        drop_unfinished(begun.earlier)
        folder = RunFolder(begun.earlier.folder)
        again = {"resumed_ns": [*was.resumed_ns, time.time_ns()], "outcome": None, "ended_ns": None}
        manifest = was.model_copy(update={**again, "stopped": None})
    folder.write_manifest(manifest)
    return folder, manifest


def outcome_of(trials: list[Trial], planned: int) -> Outcome:
    """Of the whole run."""
    if any(trial.outcome is Outcome.INTERRUPTED for trial in trials):
        return Outcome.INTERRUPTED
    if len(trials) < planned or any(trial.outcome is Outcome.FAILED for trial in trials):
        return Outcome.FAILED
    return Outcome.PASSED
