"""MedVQ and what a user would use instead of it, on a suite of data sets.

Every default of the product is chosen on the validation figures of this suite, which
``--validation`` shows alone; the test figures say what came of it.
"""
