"""What every family owes timm and the rest of the package: checked arguments, registration, facts, comparisons."""
