"""Recording gate patterns: bits on disk for each gate and image, and cost against an epoch; `benchmarks/paths.py`.

An epoch is 9,469 images in steps of 64, its validation and data loading not counted. One recording is one moment of the
callback: the hard gates of the probe images, and the weights. `--share 4` records a quarter of the probe images against
a quarter of the epoch, the weights in full.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import report

from softgate.paths import Recording, record
from softgate.paths.packing import Layout
from softgate.paths.recording import Header, Point, Recorder, network_hash, probe_hash
from softgate.surrogate.rule import Surrogate
from softgate.training import SoftgateModule

IMAGENETTE = 9469

if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="resnet18")
    options.add_argument("--stem", default="small", choices=("small", "imagenet"))
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--images", type=int, default=256)
    options.add_argument("--share", type=int, default=1)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path, default=Path("paths.json"))
    given = options.parse_args()
    torch.manual_seed(0)
    rule = Surrogate().to_dict()
    module = SoftgateModule({"name": given.model, "stem": given.stem}, rule, list("abcdefghij"), channels_last=True)
    batch = torch.randn(64, 3, given.size, given.size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(64) % 10
    optimizer = torch.optim.SGD(module.net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module.net(batch), labels).backward()
        optimizer.step()

    count = given.images // given.share
    images = torch.randn(count, 3, given.size, given.size)
    probe = images, torch.arange(count) % 10
    layout = Layout.of(record(module.net, images[:1]), soft=False)
    name = type(module.net).__name__
    header = Header(name, network_hash(module.net), probe_hash(*probe), count, layout, None, None, True)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        recorder = Recorder(Path(place), header)
        recorder.begin(*probe)

        def look(turn: int) -> None:
            kept = {"net": {key: value.detach().cpu() for key, value in module.net.state_dict().items()}, "scales": {}}
            parts = (record(module.net, part) for part in torch.split(images, 64))
            recorder.add(Point(turn, float(turn)), lambda kind: parts, kept)

        step()
        for turn in range(given.rounds):
            times = []
            for work in (step, lambda at=turn: look(at), step):
                started = time.perf_counter()
                work()
                times.append(time.perf_counter() - started)
            seconds = (times[0] + times[2]) / 2
            epoch = seconds * IMAGENETTE / 64 / given.share
            rows.append({"step s": seconds, "epoch s": epoch, "recording s": times[1], "share": times[1] / epoch})
        found = Recording(place)
        size = (Path(place) / "step=00000000.gates").stat().st_size
    gates = sum(site.gates for site in layout.sites)
    relus = sum(site.values for site in layout.sites if site.window is None)
    bits = {
        "gates of an image": gates,
        "bits per gate and image": 8 * size / (gates * count),
        "bits per relu gate": 8 * sum(site.size for site in layout.sites if site.window is None) / relus,
        "bits per pooling window": 8 * sum(s.size for s in layout.sites if s.window)
        / max(1, sum(s.values for s in layout.sites if s.window)),
        "bits, a window counted as one gate": 8 * size / (sum(site.values for site in layout.sites) * count),
        "gates MB": size / 1e6,
    }  # fmt: skip
    print(
        f"median share of an epoch: {statistics.median(row['share'] for row in rows):.4f}; {len(found.points)} moments"
    )
    title = f"recording {given.images} images, {given.model}, {given.stem} stem, {given.size} px"
    report(title, [{**bits, **row} for row in rows], given.out)
