"""Forms of the dataset pages."""

from django import forms


class DatasetForm(forms.Form):
    name = forms.CharField(max_length=120)
    description = forms.CharField(
        max_length=10_000,
        required=False,
        widget=forms.Textarea({"rows": 3}),
        help_text="Where the data comes from and what a row is.",
    )
