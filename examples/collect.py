"""From traces to a split dataset, step by step: no server, no key.

The traces shipped beside this file are 120 calls of the support desk, exported from Phoenix with their verdicts. For
your own, name a project instead: `Runner("support", since="7d")`.
"""

from pathlib import Path

from dspy_selfimprove import Runner

TRACES = Path(__file__).with_name("support_traces.jsonl")


def main() -> None:
    runner = Runner("support-desk", source=TRACES)
    print(runner.spans()[["kind", "status", "seconds", "model"]].describe(include="object"), "\n")

    checkpoint = runner.checkpoint()
    prompt = checkpoint.newest.prompt
    print(prompt.system, "\n")
    sample = checkpoint.samples[0]
    print(dict(sample.variables), {name: score.value for name, score in sample.scores.items()}, "\n")

    dataset = runner.dataset(80)
    print(runner.summary())

    # What a search is given: examples for DSPy, of train and validation. The test stays sealed.
    examples = dataset.search.to_examples("train")
    print(f"\n{len(examples)} training examples; the first has the inputs {', '.join(examples[0].inputs())}")
    if runner.draw is not None:
        runner.draw.plot().save(checkpoint.folder / "clusters.svg")
        print(f"What was drawn, as a picture: {checkpoint.folder / 'clusters.svg'}")


if __name__ == "__main__":
    main()
