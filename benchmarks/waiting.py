"""The cases of a run that wait: those of the plan, which its results make grow."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .case import Case, Plan
from .known import known, known_results
from .live import LiveRun
from .runs import ResultLine, Run, RunLock

Planner = Callable[[Mapping[str, ResultLine]], Plan]


class Queue:
    """What is still to be run, and what is known so far: `results`, by case, see `known`.

    planner: makes the plan of the results. store: where what is taken over from other runs (`reuse`) is added.
    With `retry_failed`, results that are not `ok` count for nothing, nor do trainings whose model is to be asked again
    and is not whole any more.
    """

    def __init__(
        self,
        planner: Planner,
        run: Run,
        store: RunLock,
        live: LiveRun,
        retry_failed: bool,
        reuse: Sequence[Run],
    ) -> None:
        self._planner, self._run, self._store, self._live = planner, run, store, live
        self.results = {c: r for c, r in known_results(run).items() if r.status == "ok" or not retry_failed}
        self.lost: dict[str, list[dict[str, Any]]] = {}
        self._taken: set[str] = set()
        others = ((head, other) for other in reuse for head in other.index().values())
        self._elsewhere = {head.case: (head, other) for head, other in others if head.status == "ok"}
        self._make_plan()
        if retry_failed:
            self._forget_damaged_models()

    def begin(self) -> None:
        """Take over what other runs hold, and write the plan down."""
        self._adopt()
        self._write_plan()

    @property
    def count(self) -> int:
        """How many cases wait."""
        return sum(map(len, self._waiting.values()))

    def next(self, exclusive: bool) -> Case | None:
        """The first case that waits and may run now; it waits no more."""
        waiting = self._waiting[exclusive]
        if not waiting:
            return None
        case = waiting.popleft()
        self._taken.add(case.id)
        return case

    def attempt(self, case: Case) -> int:
        """Which attempt the next one at `case` is, from 1."""
        return len(self.lost.get(case.id, ())) + 1

    def again(self, case: Case, attempt: dict[str, Any]) -> None:
        """An attempt came to nothing: the case waits again, before all others."""
        self.lost.setdefault(case.id, []).append(attempt)
        self._taken.discard(case.id)
        self._waiting[case.exclusive].appendleft(case)

    def finished(self, case: Case, result: ResultLine) -> None:
        """A case has a result, which may add others."""
        self.results[result.case] = known(result)
        self._taken.discard(case.id)
        self._live.finished(case, result)
        if case.id in self.plan.waits_for:
            before = len(self.plan.cases)
            self._make_plan()
            self._adopt()
            if len(self.plan.cases) != before:
                self._write_plan()

    def _make_plan(self) -> None:
        self.plan = self._planner(self.results)
        done = self.results.keys() | self._taken
        self._waiting = {
            alone: deque(case for case in self.plan.cases if case.exclusive == alone and case.id not in done)
            for alone in (False, True)
        }
        self._live.update(self.plan, self.results)

    def _forget_damaged_models(self) -> None:
        waiting = [case for cases in self._waiting.values() for case in cases]
        asked = {case.checkpoint_id for case in waiting if case.checkpoint_id != case.id} & self.results.keys()
        if not asked:
            return
        from .measures.trained import is_whole  # imports torch

        for trained in asked:
            if not is_whole(self._run.checkpoint_folder(trained)):
                del self.results[trained]
        self._make_plan()

    def _adopt(self) -> None:
        """Take over what other runs hold of the plan, and of what follows from it."""
        while found := [
            case
            for waiting in self._waiting.values()
            for case in waiting
            if case.reusable and case.id in self._elsewhere
        ]:
            for case in found:
                head, other = self._elsewhere[case.id]
                (result,) = other.lines([head])
                source, target = other.checkpoint_folder(case.id), self._run.checkpoint_folder(case.id)
                if source.is_dir():
                    # links stay links, which no loader follows out of a checkpoint: the run may be anybody's
                    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
                adopted = result.model_copy(update={"layout": case.label})
                self._store.append(adopted)
                self.results[case.id] = known(adopted)
            self._note_reuse({self._elsewhere[case.id][1].folder for case in found})
            self._make_plan()

    def _note_reuse(self, folders: set[Path]) -> None:
        environment = self._run.environment()
        reused = environment.setdefault("reused", {})
        for folder in sorted(folders):
            there = Run(folder).environment()
            reused[folder.name] = {"source": there.get("source"), "started": there.get("started")}
        self._run.write_environment(environment)

    def _write_plan(self) -> None:
        self._run.write_plan(self.plan.to_json())
