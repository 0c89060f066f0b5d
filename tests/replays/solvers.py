"""The solver zoo's recorded values, part by part."""

from replays import solvers_amed, solvers_gits, solvers_runs, solvers_schedules

PARTS = (solvers_schedules, solvers_runs, solvers_gits, solvers_amed)


def replay(golden):
    for part in PARTS:
        part.replay(golden)
