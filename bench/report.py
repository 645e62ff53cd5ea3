#!/usr/bin/env python3
"""Makes docs/performance.md, the figures of docs/strategies.md and their pictures from bench/results, and nothing else.

    python3 bench/report.py [--check]

With --check it writes nothing and fails if a page or picture is not what the results give.
"""

import html
import json
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
BEGIN, END = "<!-- figures: written by bench/report.py -->", "<!-- end of figures -->"

# Bars of the picture: (case, what it says).
RATIOS = [
    ("aggregate-fedavg-100x1M", "fedavg, 100 x 1 M", 4),
    ("aggregate-fedavg-1000x100k", "fedavg, 1,000 x 100 k", 4),
    ("aggregate-median-100x1M", "median, 100 x 1 M", 20),
    ("aggregate-trimmed_mean-100x1M", "trimmed_mean, 100 x 1 M", 20),
    ("aggregate-krum-100x100k", "krum, 100 x 100 k", 15),
    ("aggregate-multi_krum-100x100k", "multi_krum, 100 x 100 k", 15),
    ("aggregate-bulyan-100x100k", "bulyan, 100 x 100 k", 50),
]
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.faint { fill: #59636e }
.line { stroke: #d1d9e0 }
.bar { fill: #0969da }
.mark { stroke: #bc4c00; stroke-width: 2 }
.cell text { font-size: 12px }
.dark { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .faint { fill: #9198a1 }
  .line { stroke: #3d444d }
  .bar { fill: #4493f8 }
  .mark { stroke: #f0883e }
}
</style>"""


def load():
    """All results by case."""
    return {p.stem: json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))}


def middle(documents, *path):
    """Median of a figure over the turns; None if no turn has it."""
    values = []
    for value in documents:
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)):
            values.append(value)
    return statistics.median(values) if values else None


def number(value, digits=3):
    """A figure with three significant digits."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def table(header, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def ratio_to_peer(result):
    """Our speed over the peer's, turn by turn, so that a slow minute of the machine slows both."""
    pairs = zip(result["ours"], result["peer"], strict=True)
    return statistics.median(o["gb_per_s"] / p["gb_per_s"] for o, p in pairs)


def aggregation(results):
    """The section about aggregation."""
    rows = []
    for case, title, bar in RATIOS:
        result = results.get(case)
        if not result:
            continue
        ours, peer = result["ours"], result["peer"]
        ratio = ratio_to_peer(result)
        rows.append([
            title, number(middle(ours, "wall_ms")), number(middle(ours, "gb_per_s")),
            f"{100 * middle(ours, 'ratio'):.0f} % ({100 * middle(ours, 'ratio_net'):.0f} %)",
            number(middle(peer, "gb_per_s")), f"{ratio:.1f}", f"{bar}",
            f"{middle(ours, 'rss_peak_kb') / 1e3:.0f} MB",
        ])
    header = ["what", "ms", "GB/s", "of `pread` (without fsync)", "Flower GB/s", "times Flower", "goal", "memory"]
    return table(header, rows) + below_goal(results) if rows else ""


def below_goal(results):
    """Which rules are slower than their goals, and what stands in the way of sums."""
    missed = [(case, title, goal) for case, title, goal in RATIOS
              if case in results and ratio_to_peer(results[case]) < goal]
    if not missed:
        return ""
    text = "\n\nBelow their goals: " + "; ".join(title for _, title, _ in missed) + "."
    for case, title, goal in missed:
        peer, pread = middle(results[case]["peer"], "gb_per_s"), middle(results[case]["ours"], "pread_gb_per_s")
        if "fedavg" in case and goal * peer > 0.8 * pread:
            text += (f" For {title}, {goal} times Flower's sum over arrays in memory would be {number(goal * peer)} GB/s, and reading "
                     f"the files without adding\nanything gives {number(pread)} GB/s here. Mapped files would save the copy that "
                     "`pread` makes, but then a disk error kills the gateway\ninstead of failing one read, so updates are read.")
    return text


def training(results):
    """The section about local training."""
    result = results.get("train")
    if not result:
        return ""
    goals = {"mlp": 2.5, "simple_cnn": 1.1}
    rows = []
    for recipe, goal in goals.items():
        def speeds(documents, key):
            return [r["samples_per_s"] for d in documents for r in d[key] if r["recipe"] == recipe]
        ours, theirs = speeds(result["ours"], "recipes"), speeds(result["peer"], "results")
        if ours and theirs:
            ratio = statistics.median(o / t for o, t in zip(ours, theirs))
            rows.append([f"`{recipe}`", number(statistics.median(ours)), number(statistics.median(theirs)),
                         f"{ratio:.2f}", f"{goal}"])
    version = result["peer"][0].get("version", "")
    text = table(["model", "samples/s", f"PyTorch {version} samples/s", "ratio", "goal"], rows)
    clipping = results.get("train-clipping")
    if clipping:
        rows = []
        for recipe in goals:
            pairs = [(r["samples_per_s"], r["clipped_samples_per_s"])
                     for d in clipping["ours"] for r in d["recipes"] if r["recipe"] == recipe]
            plain, clipped = (statistics.median(side) for side in zip(*pairs))
            costs = [100 * (1 - c / p) for p, c in pairs]
            rows.append([f"`{recipe}`", number(plain), number(clipped), f"{statistics.median(costs):.0f} %",
                         f"{max(costs):.0f} %", "15 %"])
        header = ["model", "samples/s", "with each sample's gradient clipped", "cost", "worst turn", "goal"]
        text += f"\n\n`{' '.join(clipping['command'])}`, slices of both in turn:\n\n" + table(header, rows)
    return text


def figures(document, *front):
    """Paths of all numbers in a document."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from figures(value, *front, key)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield (*front, key)


def rounds(results):
    """The sections about rounds and ingest: every figure of the documents, as they were printed."""
    titles = {
        "round-2x100M": "100 M parameters, 2 nodes, one round without training (goal: 10 s, gateway 256 MB)",
        "round-1000x256": "1,000 updates of 1 KB, one round (goal: 300 ms beyond fsyncs)",
        "round-10x1k": "10 node processes, 1,000 values, one round",
        "ingest": "Updates over the node link into durable blobs (goal: 1 GB/s a core beyond the disk)",
    }
    parts = []
    for case, title in titles.items():
        result = results.get(case)
        if not result:
            continue
        rows = [[f"`{'.'.join(path)}`", number(middle(result["ours"], *path))] for path in figures(result["ours"][0])]
        parts.append(f"### {title}\n\n`{' '.join(result['command'])}`\n\n{table(['figure', 'median'], rows)}")
    return "\n\n".join(parts)


def secure(results):
    """The section about secure aggregation: the whole protocol beside Flower's, then one bar a row."""
    rows = []
    for case, title, times, seconds in [
        ("secure-full", "everybody masks with everybody", 40, 2.0), ("secure-sparse", "20 neighbours each", 20, 0.85),
    ]:
        if case in results:
            ours, peer = results[case]["ours"], results[case]["peer"]
            ratio = statistics.median(p["cpu_s_total"] / o["cpu_s_total"] for o, p in zip(ours, peer, strict=True))
            rows.append([
                title, number(middle(ours, "cpu_s_total")), number(middle(peer, "cpu_s_total")), f"{ratio:.0f}",
                f"{times}, or {seconds} s", number(middle(ours, "upload_bytes_per_value")),
                number(middle(peer, "upload_bytes_per_value")),
            ])
    header = ["64 x 1 M, 10 % leave", "CPU s", "Flower CPU s", "times less", "goal", "bytes a value", "Flower"]
    parts = [table(header, rows)] if rows else []
    bars = [
        ("secure-100x1M", "a participant masks 1 M values with 99 others", "cpu_s_mask", 1e3, "ms CPU", 100),
        ("secure-100x1M", "it sends, at 32 bits", "upload_bytes_per_value", 1, "bytes a value", 4.1),
        ("secure-100x1M-24", "it sends, at 24 bits", "upload_bytes_per_value", 1, "bytes a value", 3.1),
        ("secure-100x1M", "the coordinator opens 100 x 1 M, 10 % leave", "cpu_s_unmask", 1, "s CPU", 0.6),
        ("secure-1000x100k", "1,000 x 100 k, all in one process", "wall_ms", 1e-3, "s", 60),
        ("secure-1000x100k", "that process, at its peak", "rss_peak_kb", 1e-3, "MB", 500),
    ]
    rows = [[f"{title} (`{path}`)", f"{number(factor * middle(results[case]['ours'], path))} {unit}", f"{goal} {unit}"]
            for case, title, path, factor, unit, goal in bars if case in results]
    return "\n\n".join(parts + ([table(["what", "median", "goal"], rows)] if rows else []))


def machines(results):
    """Where and when the figures were taken."""
    results = {name: result for name, result in results.items() if name != "robust"}
    if not results:
        return (
            "No timed results are in this tree yet: take them with `bench/run.py` on a machine that does nothing else."
        )
    seen = {}
    for name, result in results.items():
        m = result["machine"]
        key = (m["cpu"], m["cores"], m["memory_gb"], m["kernel"], m["commit"], result["date"])
        seen.setdefault(key, []).append((name, result["busy_before"]))
    rows = []
    for (cpu, cores, memory, kernel, commit, date), cases in sorted(seen.items(), key=str):
        shares = [busy for _, busy in cases]
        names = "all" if len(seen) == 1 else ", ".join(name for name, _ in cases)
        rows.append([date, f"{cpu}, {cores} cores, {memory} GB", kernel, commit, f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %", names])
    text = table(["date", "machine", "kernel", "commit", "others took, before a case", "cases"], rows)
    if max(r["busy_before"] for r in results.values()) > 0.1:
        text += "\n\n**The machine did other work meanwhile: take these figures again on an idle one.**"
    return text


def performance(results):
    """docs/performance.md."""
    picture = "![Speed of aggregation in multiples of Flower's](img/aggregation.svg)\n\n" if ratios(results) else ""
    parts = [
        "# Performance\n\nWritten by `bench/report.py` from the raw results in `bench/results`; how to take them is in "
        "[bench/README.md](../bench/README.md).\nFigures are medians over turns in which ours and the peer's command ran "
        "one after the other.",
        machines(results),
        "## Aggregation\n\nFrom updates in the blob store to the new model on disk (`aivillage bench aggregate`), every "
        "update a buffer of its own. GB/s = updates x values x\n4 bytes / time. `pread` is the bandwidth of reading the same "
        "files in the same run with as many threads; the figure in brackets\nleaves the wait for the disk at the new model's "
        "end out. Flower's figures start from arrays in memory and end with arrays in memory.\n"
        "Each side uses the threads it starts by itself. \"Times Flower\" is the median of the turns' ratios, not the ratio of the medians.\n"
        "The files are in the system's cache. Memory is the peak of the whole process. Goals are the project's plan.\n\n" + picture + aggregation(results),
        "## Secure aggregation\n\nThe whole protocol in one process (`aivillage bench secure`): keys, signatures, shares, masked inputs in packed "
        "bytes, and the sum, which is compared with\nthe plain one. CPU time is that of all participants and the coordinator, network and "
        "training left out. Flower's is that of its SecAgg+ workflow\nand client modifier on messages in memory, with the same numbers of "
        "neighbours and shares that rebuild a secret; its masks come from NumPy's `RandomState`\nwith seeds of 32 bits, ours from AES-128, "
        "and every message of ours is signed. A tenth of the participants leaves after its shares.\n\n" + secure(results),
        "## Local training\n\nOne thread, batches of 32, random images of 28 x 28 (`aivillage bench train`).\n\n" + training(results),
        "## Rounds\n\nNobody trains in them. `wall_ms` is the time of a round, `median_ms` the same without waiting for the disk, "
        "`open_to_close_ms` from its\nopening to its new model; `seconds` ends when every node has verified that model.\n\n" + rounds(results),
    ]
    return "\n\n".join(part for part in parts if not part.endswith("\n\n")) + "\n"


def ratios(results):
    """(title, ratio, goal) of every case with a peer."""
    return [(title, ratio_to_peer(results[case]), bar) for case, title, bar in RATIOS if case in results]


def svg(width, height, body, title):
    """A picture that can be read on light and dark pages."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img"><title>{html.escape(title)}</title>\n{STYLE}\n{body}\n</svg>\n')


def bars(results):
    """Speed in multiples of the peer's, on a logarithmic scale, with the goals."""
    import math
    rows = ratios(results)
    left, width, step = 190, 420, 30
    top = max(max(r for _, r, _ in rows), max(b for _, _, b in rows)) * 1.3
    def x(value):
        return left + width * math.log(max(value, 1)) / math.log(top)
    body = []
    for tick in [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]:
        if tick <= top:
            body.append(f'<line class="line" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="8" y2="{step * len(rows) + 12}"/>')
            body.append(f'<text class="faint" x="{x(tick):.1f}" y="{step * len(rows) + 28}" text-anchor="middle">{tick}</text>')
    for i, (title, ratio, goal) in enumerate(rows):
        y = 12 + step * i
        # The figure stands right of the mark where it would touch it.
        beside = goal if ratio < goal < 1.6 * ratio else ratio
        body.append(f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{html.escape(title)}</text>')
        body.append(f'<rect class="bar" x="{left}" y="{y}" width="{x(ratio) - left:.1f}" height="20" rx="2"/>')
        body.append(f'<text x="{x(beside) + 6:.1f}" y="{y + 15}">{ratio:.1f}</text>')
        body.append(f'<line class="mark" x1="{x(goal):.1f}" x2="{x(goal):.1f}" y1="{y - 3}" y2="{y + 23}"/>')
    body.append(f'<text class="faint" x="{left}" y="{step * len(rows) + 48}">times as fast as Flower 1.42; the mark is the goal</text>')
    return svg(left + width + 60, step * len(rows) + 60, "\n".join(body), "Speed of aggregation in multiples of Flower's")


def colour(share):
    """From red (0) over yellow to green (1)."""
    low, middle_, high = (207, 34, 46), (212, 167, 44), (26, 127, 55)
    a, b, t = (low, middle_, share * 2) if share < 0.5 else (middle_, high, share * 2 - 1)
    return "#" + "".join(f"{round(p + (q - p) * t):02x}" for p, q in zip(a, b))


def robust_places(document):
    """(data set, deal) in order, each with its rows."""
    places = {}
    for row in document["rows"]:
        places.setdefault((row["dataset"], row["deal"]), []).append(row)
    return places


def robust_picture(document):
    """One field of cells a data set and deal: strategies down, attacks across."""
    places = robust_places(document)
    attacks = list(dict.fromkeys(row["attack"] for row in document["rows"]))
    strategies = list(dict.fromkeys(row["strategy"] for row in document["rows"]))
    left, cell, high, gap = 135, 72, 24, 58
    body = []
    width = left + cell * len(attacks) + 10
    for p, ((dataset, deal), rows) in enumerate(places.items()):
        top = 40 + p * (high * len(strategies) + gap)
        worst = min(row["accuracy"] for row in rows)
        body.append(f'<text x="4" y="{top - 24}">{dataset}, dealt {deal.replace("_", " ")}</text>')
        for a, attack in enumerate(attacks):
            body.append(f'<text class="faint" x="{left + cell * a + cell / 2}" y="{top - 6}" text-anchor="middle">{attack}</text>')
        for s, strategy in enumerate(strategies):
            y = top + high * s
            body.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{strategy}</text>')
            for a, attack in enumerate(attacks):
                row = next(r for r in rows if r["strategy"] == strategy and r["attack"] == attack)
                lost = max(0.0, row["clean"] - row["accuracy"])
                fill = colour(max(0.0, 1 - lost / 0.3))
                mark = "" if row["holds"] else " *"
                body.append(f'<g class="cell"><rect x="{left + cell * a}" y="{y}" width="{cell - 2}" height="{high - 2}" rx="2" fill="{fill}"/>'
                            f'<text class="dark" x="{left + cell * a + cell / 2}" y="{y + 15}" text-anchor="middle">{100 * row["accuracy"]:.1f}{mark}</text></g>')
    height = 40 + len(places) * (high * len(strategies) + gap) - 20
    return svg(width, height, "\n".join(body), "Accuracy of each strategy under each attack")


def robust_text(result):
    """The block of docs/strategies.md."""
    document = result["ours"][0]
    places = robust_places(document)
    attacks = list(dict.fromkeys(row["attack"] for row in document["rows"]))
    parts = [
        f"{document['nodes']} nodes, of which {document['byzantine']} are not honest; {document['rounds']} rounds; mean accuracy in % on "
        f"the common test set over {document['seeds']} seeds; `*` = more than {document['within_points']:.0f} points below the same rule "
        f"without attack.\n`{' '.join(result['command'])}` at commit {result['machine']['commit']} gives the same figures on every run.",
        "![Accuracy of each strategy under each attack](img/robust.svg)",
    ]
    for (dataset, deal), rows in places.items():
        lines = []
        for strategy in dict.fromkeys(row["strategy"] for row in rows):
            mine = {row["attack"]: row for row in rows if row["strategy"] == strategy}
            cells = [f"{100 * mine[a]['accuracy']:.1f}{'' if mine[a]['holds'] else ' *'}" for a in attacks]
            held = sum(mine[a]["holds"] for a in attacks if a != "none")
            lines.append([f"`{strategy}`", *cells, f"{held} of {len(attacks) - 1}"])
        parts.append(f"**{dataset}, dealt {deal.replace('_', ' ')}**\n\n" + table(["strategy", *attacks, "holds"], lines))
    beyond = dict.fromkeys(f"`{r['strategy']}`: {r['beyond']}." for r in document["rows"] if r.get("beyond"))
    if beyond:
        parts.append("Beyond its own condition: " + " ".join(beyond))
    return "\n\n".join(parts)


def outputs(results):
    """Every file that follows from the results, with its text."""
    files = {"docs/performance.md": performance(results)}
    if ratios(results):
        files["docs/img/aggregation.svg"] = bars(results)
    if "robust" in results:
        files["docs/img/robust.svg"] = robust_picture(results["robust"]["ours"][0])
        page = (ROOT / "docs/strategies.md").read_text()
        front, rest = page.split(BEGIN, 1)
        back = rest.split(END, 1)[1]
        files["docs/strategies.md"] = f"{front}{BEGIN}\n\n{robust_text(results['robust'])}\n\n{END}{back}"
    return files


def main():
    files = outputs(load())
    if "--check" in sys.argv[1:]:
        stale = [name for name, text in files.items() if not (ROOT / name).exists() or (ROOT / name).read_text() != text]
        if stale:
            sys.exit(f"not what the results give: {', '.join(stale)}; run python3 bench/report.py")
        return
    for name, text in files.items():
        path = ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
