"""The paper's 26 claims. Costs are the paper's where it states them; GPUs are not measured."""

from dataclasses import dataclass

from data_prep.errors import UserError
from replica import paper
from replica.claims import judges
from replica.claims.findings import Evidence, Finding, counted, overall
from replica.claims.judges import Judge, needs, network_errors, trained

NOTHING = "none: arithmetic"
ONE_RUN = "one training: five to six days on two GTX 580 (5); on other GPUs not measured"
TWO_RUNS = "two trainings a seed, each five to six days on two GTX 580 (5)"
MINUTES = "minutes a run on a GPU or some hours on two cores"
NEEDS_2010 = "needs ILSVRC-2010 and a training of days on GPUs"
NEEDS_2012 = "needs ILSVRC-2012 and a training of days on GPUs"
NEEDS_FALL = "needs ImageNet's releases of fall 2009 and 2011, which are not to be had"
FULL = "--scale full: two recipes on ILSVRC-2012; small: mini64 on pictures of 64 x 64"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the paper.

    Attributes:
        number: from 1.
        name: what the command calls it.
        section: of the paper.
        sentence: what it says.
        runs: what this project runs for it.
        cost: at full scale.
        judge: what is found of the evidence.
        experiment: the name of what is trained for it, or nothing.
        arms: of `ablations`, those that it needs beside the base.
    """

    number: int
    name: str
    section: str
    sentence: str
    runs: str
    cost: str
    judge: Judge
    experiment: str = ""
    arms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """A claim with what was found, and the verdict on it as a whole."""

    claim: Claim
    findings: list[Finding]
    verdict: str

    @property
    def shown(self) -> str:
        """The verdict, and that it is of small scale where all that speaks for it is."""
        of_it = [x for x in counted(self.findings) if x.verdict == self.verdict]
        is_small = all(x.scale == "small" for x in of_it)
        return f"{self.verdict} at small scale" if is_small else self.verdict


def judged(claim: Claim, evidence: Evidence) -> Judged:
    """Judges a claim."""
    findings = claim.judge(evidence)
    return Judged(claim, findings, overall(findings))


CLAIMS: tuple[Claim, ...] = (
    Claim(
        number=1,
        name="ilsvrc-2010",
        section="abstract, 6, Table 1",
        sentence="top-1 and top-5 error of 37.5 % and 17.0 % on the test images of ILSVRC-2010",
        runs="replica.train --recipe paper on ILSVRC-2010, replica.test --ten-crop",
        cost=ONE_RUN,
        judge=network_errors(
            paper.ERRORS_2010_TEST, train_images=judges.TRAIN_IMAGES_2010, why=NEEDS_2010
        ),
        experiment="ablations",
    ),
    Claim(
        number=2,
        name="size",
        section="abstract",
        sentence="60 million parameters and 650,000 neurons, five convolutional layers and three "
        "fully connected ones",
        runs="arithmetic on recipe paper",
        cost=NOTHING,
        judge=judges.counts,
    ),
    Claim(
        number=3,
        name="ilsvrc-2012-winner",
        section="abstract, 6",
        sentence="a variant won ILSVRC-2012 with a top-5 test error of 15.3 %, the second had "
        "26.2 %",
        runs="nothing: seven networks, two of them pre-trained",
        cost="seven trainings and two pre-trainings on 15 million images",
        judge=needs("top-5 test error", "15.3 %", f"{NEEDS_FALL}; test labels are not public"),
    ),
    Claim(
        number=4,
        name="depth",
        section="1",
        sentence="removing any convolutional layer, each no more than 1 % of the parameters, is "
        "worse",
        runs=f"arithmetic; {FULL}, without conv3 and without conv4",
        cost=TWO_RUNS,
        judge=judges.all_of(judges.shares, trained("no-conv3", "no-conv4")),
        experiment="ablations",
        arms=("no-conv3", "no-conv4"),
    ),
    Claim(
        number=5,
        name="days",
        section="1, 5",
        sentence="training takes five to six days on two GTX 580 with 3 GB",
        runs="nothing",
        cost=ONE_RUN,
        judge=needs("days", "5 to 6", "needs two GTX 580"),
    ),
    Claim(
        number=6,
        name="images",
        section="2",
        sentence="ILSVRC: roughly 1.2 million images for training, 50,000 for validation, "
        "150,000 for test",
        runs="counts of the data at hand",
        cost=NOTHING,
        judge=judges.images,
    ),
    Claim(
        number=7,
        name="figure-1",
        section="3.1, Figure 1",
        sentence="with ReLU a four-layer network reaches 25 % training error on CIFAR-10 six "
        "times faster than with tanh, each with its own learning rate and without "
        "regularization",
        runs="figure1-relu and figure1-tanh on CIFAR-10 at --size 32, rates tried first",
        cost=MINUTES,
        judge=judges.relu_against_tanh,
        experiment="figure1",
    ),
    Claim(
        number=8,
        name="two-gpus",
        section="3.2",
        sentence="two towers: 1.7 and 1.2 points fewer errors than one with half the kernels, in "
        "slightly less time",
        runs=FULL,
        cost=TWO_RUNS,
        judge=judges.all_of(
            needs("time", "slightly less", "needs two GPUs", is_aside=True), trained("half")
        ),
        experiment="ablations",
        arms=("half",),
    ),
    Claim(
        number=9,
        name="neurons",
        section="Figure 2",
        sentence="150,528 numbers of input, then 253,440, 186,624, 64,896, 64,896, 43,264, 4096, "
        "4096 and 1000 neurons",
        runs="arithmetic on recipe paper",
        cost=NOTHING,
        judge=judges.neurons,
    ),
    Claim(
        number=10,
        name="normalization",
        section="3.3",
        sentence="local response normalization (k = 2, n = 5, alpha = 1e-4, beta = 0.75): 1.4 "
        "and 1.2 points fewer errors",
        runs=FULL,
        cost=TWO_RUNS,
        judge=judges.all_of(judges.normalization_constants, trained("no-normalization")),
        experiment="ablations",
        arms=("no-normalization",),
    ),
    Claim(
        number=11,
        name="normalization-cifar",
        section="3.3",
        sentence="CIFAR-10: 13 % test error without normalization, 11 % with it",
        runs="cifar10-13pct and cifar10-11pct, each with it and without; small: 10 of 520 epochs",
        cost="some 16 hours a pair on one core",
        judge=judges.normalization_on_cifar10,
        experiment="cifar10-normalization",
    ),
    Claim(
        number=12,
        name="overlap",
        section="3.4",
        sentence="overlapping pooling: 0.4 and 0.3 points fewer errors",
        runs=FULL,
        cost=TWO_RUNS,
        judge=trained("no-overlap"),
        experiment="ablations",
        arms=("no-overlap",),
    ),
    Claim(
        number=13,
        name="crops",
        section="4.1",
        sentence="crops and reflections enlarge the training set 2048 times, and without them "
        "the network overfits",
        runs=f"arithmetic; {FULL}",
        cost=TWO_RUNS,
        judge=judges.all_of(judges.augmentation, trained("no-crops", "no-flips")),
        experiment="ablations",
        arms=("no-crops", "no-flips"),
    ),
    Claim(
        number=14,
        name="color",
        section="4.1",
        sentence="color noise along the principal components: more than 1 point fewer top-1 errors",
        runs=FULL,
        cost=TWO_RUNS,
        judge=trained("no-color-noise"),
        experiment="ablations",
        arms=("no-color-noise",),
    ),
    Claim(
        number=15,
        name="dropout",
        section="4.2",
        sentence="without dropout in the first two fully connected layers the network overfits; "
        "with it, training takes twice as many iterations",
        runs=FULL,
        cost=TWO_RUNS,
        judge=judges.all_of(
            needs(
                "iterations to converge",
                "twice as many",
                "needs trainings that converge",
                is_aside=True,
            ),
            trained("dropout"),
        ),
        experiment="ablations",
        arms=("dropout",),
    ),
    Claim(
        number=16,
        name="weight-decay",
        section="5",
        sentence="batches of 128, momentum 0.9, weight decay 0.0005, which lowers the training "
        "error",
        runs=f"comparison with recipe paper; {FULL}",
        cost=TWO_RUNS,
        judge=judges.all_of(judges.optimizer_constants, trained("no-weight-decay")),
        experiment="ablations",
        arms=("no-weight-decay",),
    ),
    Claim(
        number=17,
        name="initialization",
        section="5",
        sentence="weights of deviation 0.01, biases of one in conv2, conv4, conv5 and the hidden "
        "fully connected layers, which makes early learning faster; rate 0.01, divided "
        "by ten three times; about 90 epochs",
        runs=f"comparison with recipe paper; {FULL}",
        cost=TWO_RUNS,
        judge=judges.all_of(judges.beginning_constants, trained("zero-biases")),
        experiment="ablations",
        arms=("zero-biases",),
    ),
    Claim(
        number=18,
        name="ten-crops",
        section="6, footnote",
        sentence="without averaging over ten crops 39.0 % and 18.3 % in place of 37.5 % and 17.0 %",
        runs="the base network of the ablations, tested on one crop and on ten",
        cost=ONE_RUN,
        judge=judges.ten_views,
        experiment="ablations",
    ),
    Claim(
        number=19,
        name="table-1",
        section="6, Table 1",
        sentence="ILSVRC-2010 test: sparse coding 47.1 / 28.2 %, SIFT and Fisher vectors 45.7 / "
        "25.7 %, this network 37.5 / 17.0 %",
        runs="replica.train --recipe paper on ILSVRC-2010",
        cost=ONE_RUN,
        judge=network_errors(
            paper.ERRORS_2010_TEST, train_images=judges.TRAIN_IMAGES_2010, why=NEEDS_2010
        ),
        experiment="ablations",
    ),
    Claim(
        number=20,
        name="table-2",
        section="6, Table 2",
        sentence="ILSVRC-2012 validation: 1 CNN 40.7 / 18.2 %, 5 CNNs 38.1 / 16.4 %, 1 CNN* 39.0 "
        "/ 16.6 %, 7 CNNs* 36.7 / 15.4 %",
        runs="replica.train --recipe paper and paper-conv6 on ILSVRC-2012, replica.test --ten-crop",
        cost="one to seven trainings, " + ONE_RUN,
        judge=network_errors(
            paper.ERRORS_2012_VAL, train_images=judges.TRAIN_IMAGES_2012, why=NEEDS_2012
        ),
        experiment="ablations",
    ),
    Claim(
        number=21,
        name="validation-is-test",
        section="6",
        sentence="validation and test error differ by no more than 0.1 points",
        runs="nothing",
        cost=ONE_RUN,
        judge=needs("difference", "at most 0.1 points", "test labels of 2012 are not public"),
    ),
    Claim(
        number=22,
        name="fall-2009",
        section="6",
        sentence="ImageNet of fall 2009, 10,184 classes: 67.4 % and 40.9 % error, 78.1 % and "
        "60.9 % before",
        runs="nothing",
        cost="one training on 8.9 million images",
        judge=needs("errors", "67.4 % and 40.9 %", NEEDS_FALL),
    ),
    Claim(
        number=23,
        name="fall-2011",
        section="6",
        sentence="pre-trained on ImageNet of fall 2011, 15 million images of 22,000 categories",
        runs="paper-conv6, tested with small networks",
        cost="one training on 15 million images",
        judge=needs("top-5 error after fine-tuning", "16.6 %", NEEDS_FALL),
    ),
    Claim(
        number=24,
        name="colors-of-towers",
        section="6.1, Figure 3",
        sentence="the kernels of one tower are mostly without color, those of the other mostly "
        "with it, in every run",
        runs="mini64 with 48 kernels in conv1, with towers that communicate and that do not",
        cost=ONE_RUN,
        judge=judges.colors_of_towers,
        experiment="towers",
    ),
    Claim(
        number=25,
        name="neighbors",
        section="6.1, Figure 4",
        sentence="images whose last hidden vectors are close are alike",
        runs="nothing: a person looks",
        cost=ONE_RUN,
        judge=needs("six nearest images", "alike", NEEDS_2012),
    ),
    Claim(
        number=26,
        name="middle-layers",
        section="7",
        sentence="removing any middle layer costs about 2 points of top-1 error",
        runs=FULL,
        cost=TWO_RUNS,
        judge=trained("no-conv3", "no-conv4"),
        experiment="ablations",
        arms=("no-conv3", "no-conv4"),
    ),
)


# What the paper does not speak of, and is asked all the same; `all` leaves it out.
QUESTIONS = (
    Claim(
        number=len(CLAIMS) + 1,
        name="text-trains",
        section="5",
        sentence="no claim, a question: the text as it stands leaves ln(classes), and which "
        "difference from the source decides how soon",
        runs="mini64 with the gains of the text, with differences of the source one at a time, "
        "and with all of them",
        cost=MINUTES,
        judge=judges.beginning,
        experiment="beginnings",
    ),
)


def find_claims(word: str) -> list[Claim]:
    """The claims that a word names: `all`, a number, or a name.

    Raises:
        UserError: there is none.
    """
    if word == "all":
        return list(CLAIMS)
    every = (*CLAIMS, *QUESTIONS)
    found = [claim for claim in every if word in (claim.name, str(claim.number))]
    if not found:
        names = ", ".join(claim.name for claim in every)
        raise UserError(f"{word}: expected all, 1 to {len(every)}, or one of {names}")
    return found
