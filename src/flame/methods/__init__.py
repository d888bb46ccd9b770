"""Ready federated methods, each *local summary → sum → update*.

    from flame.methods.logistic import Logistic
    from flame.methods.run import run
    from flame.methods.standardise import Standardised

``flame.methods.catalogue`` says what there is, as data only; a method of one's own implements ``method.Method``.
"""
