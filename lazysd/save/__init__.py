"""Saving: jobs, the plan and its proof, carrying it out."""
