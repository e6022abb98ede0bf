"""What a service says of a field that it does not take."""

from django.core.exceptions import ValidationError


def refused(field: str, sentence: str, code: str = "invalid") -> ValidationError:
    """To be raised: the sentence stands at the field, on a form as in an answer of the API."""
    return ValidationError({field: ValidationError(sentence, code=code)})
