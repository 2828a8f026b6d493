"""How often does a temperature from few validation patients make test probabilities worse?

Validation and test patients (10 images each) are drawn from one population; the margins of the
network are `scale` times those of a network whose patients and images vary with variance 1. Counted
is how often the mean NLL of 300 test patients is more than 0.005 nats worse after scaling, freely
fitted and with the prior of `fit_temperature`.

    python benchmarks/temperature_prior.py    # a minute
"""

import argparse

import numpy as np

from densenet_flax.evaluation.metrics.temperature import fit_temperature, nll_per_image

PATIENTS = (3, 6, 12, 24)
SCALES = (1.0, 1.5, 3.0, 6.0)
HARMFUL = 0.005  # nats


def draw(patients: int, scale: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns margins and labels; patients are of both classes in turn."""
    label = np.repeat(np.arange(patients) % 2, 10)
    effect = np.repeat(random.normal(size=patients), 10)
    noise = random.normal(size=10 * patients)
    return scale * (1.5 * (2 * label - 1) + effect + noise), label


def main() -> None:
    """Prints a line of docs/evaluation.md for each number of patients and scale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=500, help="per line (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    args = parser.parse_args()
    print("| patients | scale | worse, free | worse, prior | mean gain, free | mean gain, prior |")
    print("| --- | --- | --- | --- | --- | --- |")
    for patients in PATIENTS:
        for scale in SCALES:
            random = np.random.default_rng([args.seed, patients, round(10 * scale)])
            gains = np.zeros((args.runs, 2))
            for run in range(args.runs):
                margins, label = draw(patients, scale, random)
                test, test_label = draw(300, scale, random)
                before = nll_per_image(test_label, test).mean()
                for k, known in enumerate((None, patients)):
                    temperature, _ = fit_temperature(margins, label, known)
                    gains[run, k] = before - nll_per_image(test_label, test / temperature).mean()
            worse, mean = (gains < -HARMFUL).mean(axis=0), gains.mean(axis=0)
            print(
                f"| {patients} | {scale:g} | {worse[0]:.1%} | {worse[1]:.1%} | {mean[0]:+.3f} | "
                f"{mean[1]:+.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
