"""MLGWSC-1: the field's first mock data challenge for machine-learning searches (Schaefer et al. 2023, PRD 107, 023021).

files      the challenge's strain files and event files
search     a search over strain of any length, in bounded memory
scorer     what answers for a model, wherever it was kept
"""
