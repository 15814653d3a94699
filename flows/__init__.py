"""Prefect decorators and deployments only; every stage they call is a plain function of ``pipeline``."""

from flows import environment

environment.prepare()
