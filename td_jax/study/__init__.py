"""Studies that go past the paper: when does distillation pay?"""
