#!/bin/sh
# Runs once, when the database is made: the service owns its database and no more.
# Statements are counted there for `switchyard queries`; only a superuser may begin that.
set -eu
# psql reads the passwords itself: what stands on a command line is in every list of processes.
psql -v ON_ERROR_STOP=1 -U postgres -d postgres <<'SQL'
\set app `cat /run/secrets/postgres_app_password`
\set replicator `cat /run/secrets/postgres_replicator_password`
\set monitor `cat /run/secrets/postgres_monitor_password`
CREATE ROLE switchyard LOGIN PASSWORD :'app';
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'replicator';
CREATE ROLE monitor LOGIN PASSWORD :'monitor' IN ROLE pg_monitor;
CREATE DATABASE switchyard OWNER switchyard;
REVOKE ALL ON DATABASE switchyard FROM PUBLIC;
GRANT CONNECT ON DATABASE switchyard TO monitor;
\connect switchyard
CREATE EXTENSION pg_stat_statements;
SQL
