"""What a sweep is at before its first trial is told, with its time."""

from sweeps.cli.display.stages import Stages


def test_each_stage_has_the_time_between_looks() -> None:
    now = [0.0]
    stages = Stages(lambda: now[0])
    for until, stage in ((2.0, "ray"), (5.0, "ray"), (9.0, "load"), (9.5, "tokenize"), (30.0, "")):
        stages.see(stage)
        now[0] = until
    assert stages.current == "Starting the host ...  0:30"
    stages.see("load")
    assert stages.current == "Loading the base ...  0:30"
    now[0] = 71.0
    stages.see("")
    assert stages.told() == {
        "started": "starting the host 20 s, starting Ray 5 s, loading the base 45 s"
    }
    assert stages.seconds["reading the data"] == 0.5


def test_what_takes_no_time_is_not_told() -> None:
    stages = Stages(lambda: 0.0)
    stages.see("load")
    stages.see("")
    assert stages.told() == {}
