"""Train, evaluate, cross-validate, predict and export.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart
    python main.py --mode=evaluate --workdir=runs/quickstart
    python main.py --config=configs/quickstart.py --workdir=runs/folds --mode=cross_validate
    python main.py --mode=predict --workdir=runs/quickstart --images='tiles/**/*.png'
    python main.py --mode=export --workdir=runs/quickstart --output=exported

The program is `densenet_flax/experiments/program.py`, which is also installed as `densenet-flax`.
"""

from densenet_flax.experiments.program import run

if __name__ == "__main__":
    run()
