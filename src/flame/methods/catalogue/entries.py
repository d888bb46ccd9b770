"""The entries. Adding a method here makes it known to the hub's pages, the CLI and the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

ParameterType = Literal["number", "integer", "text", "flag", "list"]
Family = Literal[
    "descriptive", "tests", "regression", "survival", "evaluation", "multivariate", "meta-analysis", "learning"
]

PROGRAM: Final = "flame.methods.programs.catalogue_method"


@dataclass(frozen=True, slots=True)
class Parameter:
    """``type`` is one of the manifest's. ``default`` is None where there is none, or it must be given."""

    name: str
    type: ParameterType
    description: str
    required: bool = False
    default: bool | int | float | str | tuple[str | float, ...] | None = None
    options: tuple[str, ...] = ()
    """A text is one of these; empty: any."""
    of: Literal["text", "number"] = "text"
    """What a list holds."""


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    title: str
    family: Family
    description: str
    parameters: tuple[Parameter, ...]
    method: str
    """``module:class``, loaded when it is used."""
    program: str = PROGRAM
    """Module whose source is the ready program."""
    sums: tuple[str, ...] = ("sum",)
    """Names of the sums it takes."""
    messages: tuple[str, ...] = ("question",)
    """Categories of the messages that the aggregator sends to the data nodes."""


def _columns(description: str) -> Parameter:
    return Parameter("columns", "list", description, required=True)


_MISSING = Parameter(
    "missing",
    "text",
    "Rows with a missing value: left out and counted, or an error.",
    default="drop",
    options=("drop", "error"),
)
_RANGES = Parameter(
    "ranges", "list", "Plausible ranges, COLUMN=LOW:HIGH; a hospital whose values lie outside says so and stops."
)
_CATEGORIES = Parameter("categories", "list", "Columns of numbers that are codes of a category.")
_DESCRIBED = (
    _CATEGORIES,
    Parameter("quantiles", "list", "Probabilities of quantiles.", default=(0.25, 0.5, 0.75), of="number"),
    Parameter("resolution", "number", "How near a quantile is found, in standard deviations.", default=1e-3),
    _RANGES,
)
_GROUPED = (
    Parameter("value", "text", "The column of numbers that is compared.", required=True),
    Parameter("group", "text", "The column whose levels are the groups.", required=True),
    Parameter("groups", "list", "Which levels, in this order; without it all of them."),
    _RANGES,
    _MISSING,
)
_BINS = Parameter("bins", "integer", "How many bins the values may be counted in.", default=1000)
_TABLE = (
    Parameter("row", "text", "The category of the rows.", required=True),
    Parameter("column", "text", "The category of the columns.", required=True),
    Parameter("yates", "flag", "Continuity correction of 2 x 2 tables.", default=False),
    _MISSING,
)
_MODEL = (
    Parameter("outcome", "text", "The column that holds the outcome; or name it in the formula."),
    Parameter("covariates", "list", "The columns that explain it; text is taken as a category."),
    Parameter("formula", "text", "Instead of both: OUTCOME ~ TERMS, such as died ~ age + C(sex) + log(crp)."),
)
_REFERENCES = Parameter("references", "list", "Reference levels of categories, COLUMN=LEVEL; without it the first.")
_INTERCEPT = Parameter("intercept", "flag", "Whether the model has a constant (in a formula: 0 + …).", default=True)
_WEIGHTED = (
    Parameter("weights", "text", "A column of weights."),
    Parameter(
        "weight_kind",
        "text",
        "What a weight means: as many rows, or the inverse of a variance.",
        default="frequency",
        options=("frequency", "precision"),
    ),
    Parameter("offset", "text", "A column that is added to the linear predictor."),
    Parameter("exposure", "text", "A column whose logarithm is the offset, such as time at risk."),
)
_PENALISED = (
    Parameter("penalty", "number", "Strength λ of a penalty on the coefficients; 0: none.", default=0.0),
    Parameter("l1_ratio", "number", "0: ridge, 1: lasso, between: elastic net.", default=0.0),
    Parameter(
        "standardise", "flag", "Give each covariate mean 0 and standard deviation 1 over all hospitals.", default=False
    ),
)
_ITERATIONS = Parameter("max_iterations", "integer", "When to give up.", default=100)
_LEVELS = Parameter("levels", "list", "For an outcome of text: its two levels, first without, then with the event.")


def _link(*links: str) -> Parameter:
    return Parameter("link", "text", "The link function.", default=links[0], options=links)


def _glm(name: str, title: str, description: str, class_name: str, *own: Parameter) -> Entry:
    common = (*_MODEL, _REFERENCES, _INTERCEPT, *_WEIGHTED, *_PENALISED, _RANGES, _MISSING, _ITERATIONS)
    return Entry(name, title, "regression", description, (*common, *own), f"flame.methods.glm:{class_name}")


_FAMILY = Parameter(
    "family",
    "text",
    "Distribution of the outcome.",
    default="gaussian",
    options=("gaussian", "binomial", "poisson", "gamma", "negative-binomial"),
)
_ALPHA = Parameter("alpha", "number", "Fixed dispersion of the negative binomial; without it estimated.")
_SURVIVAL = (
    Parameter("duration", "text", "The column of times.", required=True),
    Parameter("event", "text", "The column that is 1 where the time ended in the event, 0 if censored.", required=True),
)
_SURVIVAL_OPTIONS = (
    Parameter("entry", "text", "The column of late entries into the study."),
    Parameter("bin_width", "number", "Round times up to multiples of this, where an exact time points at a person."),
    _RANGES,
    _MISSING,
)
_CURVES = (
    *_SURVIVAL,
    Parameter("group", "text", "The column whose levels are compared."),
    Parameter("horizon", "number", "Up to where the restricted mean goes; without it the last event time."),
    Parameter(
        "interval",
        "text",
        "Scale of the confidence intervals.",
        default="log-log",
        options=("log-log", "log", "plain"),
    ),
    *_SURVIVAL_OPTIONS,
)
_SCORED = (
    Parameter("outcome", "text", "The column of 0 and 1.", required=True),
    Parameter("score", "text", "The column of scores.", required=True),
    _MISSING,
)
_NUMBERS = "Columns of numbers."

_ENTRIES = (
    Entry(
        "describe",
        "Describe columns",
        "descriptive",
        "Counts, missing values, means, deviations, skewness, kurtosis, quantiles to a stated bound and levels, over "
        "all and by group.",
        (
            _columns("Columns of numbers and categories."),
            Parameter("by", "text", "A category to describe by."),
            *_DESCRIBED,
        ),
        "flame.methods.descriptive:Describe",
    ),
    Entry(
        "table-one",
        "Table 1",
        "descriptive",
        "Each column by group, with tests and standardised differences.",
        (
            _columns("Columns of numbers and categories."),
            Parameter("by", "text", "The category that makes the groups.", required=True),
            *_DESCRIBED,
        ),
        "flame.methods.descriptive:TableOne",
    ),
    Entry(
        "histogram",
        "Histogram",
        "descriptive",
        "Counts in equal bins, over all and by group.",
        (
            Parameter("column", "text", "A column of numbers.", required=True),
            Parameter("by", "text", "A category."),
            Parameter("bins", "integer", "How many.", default=20),
            Parameter("low", "number", "Where the first begins; without it the mean - 3 standard deviations."),
            Parameter("high", "number", "Where the last ends."),
            _RANGES,
        ),
        "flame.methods.descriptive:Histogram",
    ),
    Entry(
        "correlation",
        "Correlation",
        "descriptive",
        "Pearson's correlations and covariances of complete rows.",
        (_columns(_NUMBERS), _RANGES, _MISSING),
        "flame.methods.descriptive:Correlation",
    ),
    Entry(
        "cross-table",
        "Cross-table",
        "descriptive",
        "Counts of two categories, expected counts, chi-squared, Cramér's V; odds ratio and Fisher's test for 2 x 2.",
        _TABLE,
        "flame.methods.comparison:CrossTable",
    ),
    Entry(
        "t-test",
        "Welch's t test",
        "tests",
        "Means of two groups whose variances may differ.",
        _GROUPED,
        "flame.methods.comparison:WelchTest",
    ),
    Entry(
        "student-t-test",
        "Student's t test",
        "tests",
        "Means of two groups of equal variance.",
        _GROUPED,
        "flame.methods.comparison:StudentTest",
    ),
    Entry("anova", "ANOVA", "tests", "Means of several groups.", _GROUPED, "flame.methods.comparison:Anova"),
    Entry(
        "chi-squared",
        "Chi-squared test",
        "tests",
        "Independence of two categories.",
        _TABLE,
        "flame.methods.comparison:ChiSquared",
    ),
    Entry(
        "fisher-exact",
        "Fisher's exact test",
        "tests",
        "Independence in a 2 x 2 table, exactly.",
        _TABLE,
        "flame.methods.comparison:FisherExact",
    ),
    Entry(
        "mann-whitney",
        "Mann-Whitney U test",
        "tests",
        "Ranks of two groups, on bins that follow the data; the result bounds the error of binning.",
        (*_GROUPED, _BINS),
        "flame.methods.comparison:MannWhitney",
    ),
    Entry(
        "kruskal-wallis",
        "Kruskal-Wallis test",
        "tests",
        "Ranks of several groups, on bins that follow the data; the result bounds the error of binning.",
        (*_GROUPED, _BINS),
        "flame.methods.comparison:KruskalWallis",
    ),
    _glm(
        "linear",
        "Linear regression",
        "Least squares: the pooled coefficients, errors, intervals, R².",
        "Linear",
        _link("identity", "log"),
    ),
    _glm(
        "logistic",
        "Logistic regression",
        "Maximum-likelihood logistic regression by Fisher scoring over the sums of all hospitals: the coefficients, "
        "standard errors and log-likelihood of the pooled data.",
        "LogisticRegression",
        _LEVELS,
        _link("logit", "log"),
    ),
    _glm("poisson", "Poisson regression", "Rates of counts.", "Poisson", _link("log", "identity")),
    _glm(
        "gamma",
        "Gamma regression",
        "Positive, skewed outcomes such as costs.",
        "Gamma",
        _link("log", "inverse", "identity"),
    ),
    _glm(
        "negative-binomial",
        "Negative binomial regression",
        "Counts that vary more than Poisson's (NB2); the dispersion is estimated with the coefficients.",
        "NegativeBinomial",
        _ALPHA,
    ),
    _glm(
        "glm",
        "Generalised linear model",
        "The five families under one name.",
        "Glm",
        _FAMILY,
        Parameter("link", "text", "The link function; without it the family's usual one."),
        _LEVELS,
        _ALPHA,
    ),
    Entry(
        "mixed-linear",
        "Linear mixed model",
        "regression",
        "Least squares with a random intercept for clusters within hospitals, such as patients measured again, or for "
        "the hospitals themselves; by restricted maximum likelihood.",
        (
            *_MODEL,
            Parameter("cluster", "text", "The column that says which rows belong together; or site.", default="site"),
            _REFERENCES,
            Parameter("reml", "flag", "Restricted maximum likelihood; false: maximum likelihood.", default=True),
            _RANGES,
            _MISSING,
            Parameter("max_iterations", "integer", "When to give up.", default=40),
        ),
        "flame.methods.mixed:MixedLinear",
    ),
    Entry(
        "kaplan-meier",
        "Kaplan-Meier curves",
        "survival",
        "Survival with Greenwood's intervals, medians, restricted means; the log-rank test between groups.",
        _CURVES,
        "flame.methods.survival:KaplanMeier",
    ),
    Entry(
        "log-rank",
        "Log-rank test",
        "survival",
        "Whether survival differs between groups; the curves come with it.",
        _CURVES,
        "flame.methods.survival:LogRankTest",
    ),
    Entry(
        "restricted-mean",
        "Restricted mean survival",
        "survival",
        "Mean survival up to a horizon, and its differences between groups.",
        _CURVES,
        "flame.methods.survival:RestrictedMean",
    ),
    Entry(
        "cox",
        "Cox regression",
        "survival",
        "Proportional hazards by the pooled partial likelihood: hazard ratios, baseline hazard, a test of "
        "proportionality. With strata=site nothing is told about event times.",
        (
            *_SURVIVAL,
            Parameter("covariates", "list", "The columns that explain it; text is taken as a category."),
            Parameter("formula", "text", "Instead: ~ TERMS, such as ~ age + C(stage)."),
            _REFERENCES,
            Parameter("ties", "text", "How tied events are treated.", default="efron", options=("efron", "breslow")),
            Parameter("strata", "list", "Columns whose levels have hazards of their own; site is the hospital."),
            Parameter("weights", "text", "A column of case weights (with ties=breslow)."),
            Parameter("baseline", "flag", "Whether the result holds the baseline hazard.", default=True),
            *_SURVIVAL_OPTIONS,
            Parameter("max_iterations", "integer", "When to give up.", default=50),
        ),
        "flame.methods.cox:Cox",
    ),
    Entry(
        "roc",
        "ROC curve",
        "evaluation",
        "The curve and its area, with a bound for the binning of scores.",
        (
            *_SCORED,
            Parameter("bins", "integer", "How many bins scores are counted in.", default=1000),
            Parameter("low", "number", "The lowest score that is possible.", default=0.0),
            Parameter("high", "number", "The highest.", default=1.0),
        ),
        "flame.methods.evaluation:Roc",
    ),
    Entry(
        "calibration",
        "Calibration",
        "evaluation",
        "Predicted against observed risk in bins, Hosmer-Lemeshow, Brier score, log loss.",
        (*_SCORED, Parameter("bins", "integer", "How many bins of risk.", default=10)),
        "flame.methods.evaluation:Calibration",
    ),
    Entry(
        "brier",
        "Brier score",
        "evaluation",
        "Mean squared error of predicted risks, and its skill.",
        (*_SCORED, Parameter("bins", "integer", "How many bins of risk.", default=10)),
        "flame.methods.evaluation:Brier",
    ),
    Entry(
        "confusion",
        "Confusion matrix",
        "evaluation",
        "Sensitivity, specificity, predictive values with intervals, F1, kappa, Matthews' correlation.",
        (*_SCORED, Parameter("threshold", "number", "From where on a score says 1.", default=0.5)),
        "flame.methods.evaluation:Confusion",
    ),
    Entry(
        "pca",
        "Principal components",
        "multivariate",
        "Eigenvalues and loadings of the correlation or covariance matrix.",
        (
            _columns(_NUMBERS),
            Parameter("standardise", "flag", "Correlations instead of covariances.", default=True),
            Parameter("components", "integer", "How many to show; 0: all.", default=0),
            _RANGES,
            _MISSING,
        ),
        "flame.methods.multivariate:Pca",
    ),
    Entry(
        "k-means",
        "k-means clusters",
        "multivariate",
        "Lloyd's algorithm.",
        (
            _columns(_NUMBERS),
            Parameter("k", "integer", "How many clusters.", required=True),
            Parameter("centres", "list", "Where to start: k times the columns' numbers.", of="number"),
            Parameter("standardise", "flag", "Distances in standard deviations.", default=False),
            Parameter("seed", "integer", "For a start without centres.", default=0),
            Parameter("max_iterations", "integer", "When to give up.", default=300),
            _RANGES,
            _MISSING,
        ),
        "flame.methods.multivariate:KMeans",
    ),
    Entry(
        "mca",
        "Multiple correspondence analysis",
        "multivariate",
        "Principal inertias and coordinates of the levels of several categories.",
        (
            _columns("Categories."),
            Parameter("dimensions", "integer", "How many to show.", default=2),
            _MISSING,
        ),
        "flame.methods.multivariate:Mca",
    ),
    Entry(
        "meta-analysis",
        "Meta-analysis of the hospitals' own fits",
        "meta-analysis",
        "Fixed and random effects (DerSimonian-Laird) and heterogeneity of a model that each hospital fits alone. "
        "An average of local answers: the fit of the pooled data may be another.",
        (*_MODEL, _FAMILY, _REFERENCES, _LEVELS, *_WEIGHTED, _RANGES, _MISSING),
        "flame.methods.meta:MetaAnalysis",
    ),
)

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
