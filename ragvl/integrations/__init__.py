"""ragvl's rerankers where other frameworks expect theirs: a module each, with the framework's name.

Each needs its framework, which is imported with the module and not before:
`from ragvl.integrations.langchain import RagVLReranker`.
"""
