# Everything that one does here. The recipes are in scripts/, the settings in the environment.
.PHONY: help demo build test test-cassert test-docker test-valgrind lint bench package clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: ## Postgres, sidecar and sample data, at work until Ctrl-C (SHAPEFEED_PORT, SHAPEFEED_PG_PORT, SHAPEFEED_HOME)
	@scripts/demo

build: ## extension and sidecar, as target/release/{libshapefeed.so,shapefeed-sidecar}
	@scripts/bring-postgres
	@scripts/build

test: ## every suite; some of them: make test SUITES="unit regress"
	@scripts/test $(SUITES)

test-cassert: ## the same against a Postgres that is built with assertions (long)
	@scripts/test-cassert $(SUITES)

test-valgrind: ## the SQL regression suite under valgrind (long)
	@scripts/test-valgrind

test-docker: ## builds the images of docker/ and runs them, without Docker or a registry (as root; long)
	@scripts/test-docker

lint: build ## rustfmt, clippy, shell, JavaScript, TypeScript, SQL
	@scripts/lint

bench: build ## the figures in the README, each with its target
	@scripts/bench

package: build ## dist/: the extension and the sidecar as archives
	@scripts/package

clean: ## removes what was built, brought and made; not a demo with a SHAPEFEED_HOME of its own
	@scripts/clean
