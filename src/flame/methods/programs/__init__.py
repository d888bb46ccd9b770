"""Programs ready to submit: each file stands alone, is shown to the stewards, and may be copied and changed."""
