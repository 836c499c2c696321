"""The table of hosts by threads."""

from collections.abc import Sequence

from figures import Measurement, by, gains, median_rate, spread, table

SETTINGS = ("model", "quantization", "trials", "steps", "tokens", "slots")


def cores(found: Sequence[Measurement]) -> list[str]:
    """Trial-steps per second of all hosts together, base and imports apart."""
    lines: list[str] = []
    for values, measured in by(found, lambda one: tuple(one[name] for name in SETTINGS)).items():
        setting = dict(zip(SETTINGS, values, strict=True))
        lines += [
            f"### {setting['model']}, {setting['quantization']}: {setting['trials']} trials of "
            f"{setting['steps']} steps of at most {setting['tokens']} tokens, "
            f"{setting['slots']} slots in all",
            "",
        ]
        arms = by(measured, lambda one: one["arm"])
        rows = []
        for name, arm in arms.items():
            engine, _, shape = name.partition("-")
            first = next(other for other in arms if other.startswith(engine))
            hosts, threads = shape.split("x")
            ratio = "" if name == first else spread(gains(arm, arms[first]))
            peak = f"{max(one['peak_bytes'] for one in arm) / 1e6:.0f}"
            rows.append([engine, hosts, threads, f"{median_rate(arm):.1f}", ratio, peak, len(arm)])
        head = ["engine", "hosts", "threads of each", "trial-steps/s", "gain on the first"]
        lines += table([*head, "MB of all", "repeats"], rows)
    return lines
