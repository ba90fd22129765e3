.PHONY: demo test quick check bench setup
demo: ; ./dev demo
test: ; ./dev test
quick: ; ./dev test quick
check: ; ./dev check
bench: ; ./dev bench
setup: ; ./dev setup
