"""The `report` stage: tables, significance tests, breakdowns and plots of finished runs."""
