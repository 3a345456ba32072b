"""Whoever runs Cortex: redeploys, goes back, changes settings, and notes what may answer from when on."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from world import World

from faults.judgement import Kill, Timeline, kills_explain_crashing
from faults.project import APIS, BAD_VERSIONS, BOUNDS, MANY, SECOND_FAILS, SLEEPER, WRONG_SIGNATURE, Project
from faults.schedule import Command, Step

LONGEST_HEAD_START_S = 1.5
"""How far a deploy may come before somebody goes back."""
SETTLES_WITHIN_S = 60.0
COMMAND_WITHIN_S = 120.0
ERROR = r"^error: ([a-z-]+)$"
GONE_OVER = ("replaced-meanwhile", "rolled-back-meanwhile")
"""What that one of two commands for one api is told which the other went over."""
CRASHING = "crashing"
"""What a command is told whose api's replicas were killed again and again."""
WELL = frozenset({"live", "asleep", "waking"})


class Outcome:
    """What a command printed as JSON, and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.err = err
        try:
            self.said: Any = json.loads(out)
        except ValueError:
            self.said = {}

    @property
    def references(self) -> list[str]:
        """Codes of what went wrong."""
        said = self.said.get("problems", ()) if isinstance(self.said, dict) else ()
        return sorted({problem["reference"] for problem in said} | set(re.findall(ERROR, self.err, re.MULTILINE)))

    @property
    def text(self) -> str:
        return f"exit {self.code}, {json.dumps(self.said)[:1500]} {self.err.strip()[-1500:]}"


class Operator:
    """
    Runs the commands of a schedule, one after the other.

    Args:
        project: what is deployed.
        kills: of replicas, so far.
        tell: takes a line about what happens.
    """

    def __init__(
        self,
        world: World,
        project: Project,
        timelines: Mapping[str, Timeline],
        kills: Callable[[], Sequence[Kill]],
        tell: Callable[[str], None],
    ) -> None:
        self._world = world
        self._project = project
        self._kills = kills
        self._timelines = timelines
        self._tell = tell
        self._seen: dict[str, set[str]] = {api: set() for api in APIS}
        """By api, versions that commands named, and builds that were deployed."""
        self.done: Counter[str] = Counter()
        """By command and how it ended."""
        self.faults: list[str] = []

    def act(self, step: Step) -> None:
        """Run one command to its end."""
        project = self._project
        match step.command:
            case Command.HANDLER:
                project.new_handler()
                self._deploy(step.command)
            case Command.MODEL:
                for api in step.apis:
                    project.new_model(api)
                self._deploy(step.command)
            case Command.SETTINGS:
                project.new_settings()
                self._deploy(step.command)
            case Command.BOUNDS:
                project.bounds = step.bounds
                self._deploy(step.command)
            case Command.BAD:
                self._deploy_bad(step.what)
            case Command.BACK:
                self._roll_back(step.command, step.apis[0])
            case Command.BACK_TO:
                self._roll_back_to_one(step)
            case Command.BACK_MEANWHILE:
                self._roll_back_meanwhile(step)

    def first_deploy(self) -> bool:
        project = self._project
        project.new_handler()
        for api in APIS:
            project.new_model(api)
        return self._deploy("first deploy").code == 0

    def settle(self) -> None:
        """With all faults over, one more deploy must go live, and everything must be as wanted."""
        self._project.new_handler()
        done = self._deploy("last deploy")
        if done.code != 0:
            self.faults.append(f"the last deploy failed: {done.text}")
            return
        wanted = dict.fromkeys(APIS, "live") | {SLEEPER: "asleep"}
        least, most = self._project.bounds
        deadline_s = time.monotonic() + SETTLES_WITHIN_S
        while True:
            apis = self._apis()
            found = {name: api["status"] for name, api in apis.items()}
            counts = {name: api["replicas"] for name, api in apis.items()}
            is_right = found == wanted and not any(count["stale"] or count["failed"] for count in counts.values())
            if is_right and least <= counts[MANY]["up_to_date"] == counts[MANY]["ready"] <= most:
                return
            if time.monotonic() > deadline_s:
                self.faults.append(f"the final state is not as wanted: {found} {counts}")
                return
            time.sleep(0.2)

    # ---- deploys ------------------------------------------------------------------------------------------------

    def _deploy(self, name: str) -> Outcome:
        """Of good files: live, unless something was killed under it."""
        self._project.write()
        begun_s = time.monotonic()
        self._may(begun_s, self._project.builds())
        done = self._cortex("deploy", "-o", "json")
        self._count(name, begun_s, done)
        self._note(done)
        return done

    def _deploy_bad(self, what: str) -> None:
        project = self._project
        with project.only_now():
            if what == WRONG_SIGNATURE:
                project.new_model(MANY, bad=True)
                # The others are what the files say, also those that had gone back: nothing is wrong with them.
                self._may(time.monotonic(), {api: build for api, build in project.builds().items() if api != MANY})
            else:
                project.new_handler(BAD_VERSIONS[what])
            if what == SECOND_FAILS:
                project.bounds = BOUNDS
                self._may(time.monotonic(), project.builds())
            project.write()
            done = self._cortex("deploy", "-o", "json")
        project.write()
        self.done[f"{Command.BAD}: {what}, {'TAKEN' if done.code == 0 else 'refused'}"] += 1
        self._tell(f"{what}: {done.code} {' '.join(done.references)}")
        if done.code == 0:
            self.faults.append(f"a version that {what} was reported live: {done.text}")
        if what == SECOND_FAILS:
            self._note(done)

    # ---- going back ---------------------------------------------------------------------------------------------

    def _roll_back(self, name: str, api: str, version: str = "") -> Outcome:
        begun_s = time.monotonic()
        done = self._cortex("rollback", api, *([version] if version else []), "-o", "json")
        self._count(name, begun_s, done)
        self._note_rollback(api, begun_s, done)
        return done

    def _note_rollback(self, api: str, begun_s: float, done: Outcome) -> None:
        change = done.said.get("change")
        if change is None:
            # It may have been taken all the same: to whichever.
            self._timelines[api].may(begun_s, *self._seen[api])
            return
        self._timelines[api].may(begun_s, change["version"])
        self._note(done)

    def _roll_back_to_one(self, step: Step) -> None:
        (api,) = step.apis
        listed = self._cortex("history", api, "-o", "json")
        if listed.code:  # a look that the control plane did not live to answer
            self.done[f"{step.command}: could not look"] += 1
            return
        lines = listed.said
        wanted = {line["version"] for line in lines if line["wanted"]}
        others = sorted({line["version"] for line in lines if not line["obstacle"]} - wanted)
        if not others:
            self.done[f"{step.command}: there was none"] += 1
            return
        self._roll_back(step.command, api, others[int(step.chance * len(others))])

    def _roll_back_meanwhile(self, step: Step) -> None:
        (api,) = step.apis
        self._project.new_handler()
        self._project.write()
        begun_s = time.monotonic()
        self._may(begun_s, self._project.builds())
        deploying = self._begin("deploy", "-o", "json")
        time.sleep(step.chance * LONGEST_HEAD_START_S)
        rolling_s = time.monotonic()
        rolled = self._cortex("rollback", api, "-o", "json")
        deployed = _ended(deploying)
        self._count(f"{step.command}, the rollback", rolling_s, rolled, accepted=GONE_OVER)
        self._count(f"{step.command}, the deploy", begun_s, deployed, accepted=GONE_OVER)
        if "change" in rolled.said:
            self._timelines[api].may(rolling_s, rolled.said["change"]["version"])
        else:
            self._timelines[api].may(rolling_s, *self._seen[api])
        # Which of the two came last only the state tells; for the other apis the deploy alone speaks.
        self._settled()

    def _settled(self) -> None:
        """Wait until nothing is under way, and note what serves then."""
        deadline_s = time.monotonic() + SETTLES_WITHIN_S
        while time.monotonic() < deadline_s:
            apis = self._apis()
            if len(apis) == len(APIS) and all(_is_settled(api) for api in apis.values()):
                for name, api in apis.items():
                    self._only(name, api["version"])
                return
            time.sleep(0.2)
        self.faults.append(f"what was under way did not end: { {name: api['status'] for name, api in apis.items()} }")

    # ---- what is known ------------------------------------------------------------------------------------------

    def _may(self, at_s: float, builds: Mapping[str, str]) -> None:
        for api, build in builds.items():
            self._seen[api].add(build)
            self._timelines[api].may(at_s, build)

    def _only(self, api: str, version: str) -> None:
        self._seen[api].add(version)
        self._timelines[api].only(time.monotonic(), version)

    def _note(self, done: Outcome) -> None:
        """What a command that followed its apis said of each, once it had ended."""
        for api in done.said.get("apis", ()):
            if done.code == 0 and _is_settled(api):
                self._only(api["name"], api["version"])

    def _count(self, name: str, begun_s: float, done: Outcome, *, accepted: Sequence[str] = ()) -> None:
        if kills_explain_crashing(self._kills(), begun_s):
            accepted = (*accepted, CRASHING)
        how = "done" if done.code == 0 else f"not done ({', '.join(done.references) or 'no reason'})"
        self.done[f"{name}: {how}"] += 1
        self._tell(f"{name}: {how}{'' if done.code == 0 else ' ' + done.text}")
        if done.code != 0 and (not done.references or set(done.references) - set(accepted)):
            self.faults.append(f"{name} failed: {done.text}")

    def _apis(self) -> dict[str, dict[str, Any]]:
        shown = self._cortex("get", "-o", "json").said or []
        return {api["name"]: api for api in shown} if isinstance(shown, list) else {}

    def _cortex(self, *arguments: str) -> Outcome:
        return _ended(self._begin(*arguments))

    def _begin(self, *arguments: str) -> subprocess.Popen[str]:
        return self._world.begin(*arguments)


def _ended(command: subprocess.Popen[str]) -> Outcome:
    try:
        out, err = command.communicate(timeout=COMMAND_WITHIN_S)
    except subprocess.TimeoutExpired:
        command.kill()
        out, err = command.communicate()
        err += f"\nit did not end within {COMMAND_WITHIN_S:g} s"
    return Outcome(command.returncode, out, err)


def _is_settled(api: Mapping[str, Any]) -> bool:
    """Whether the version that is wanted serves alone."""
    return api["status"] in WELL and not api["serving"] and not api["replicas"]["stale"]
