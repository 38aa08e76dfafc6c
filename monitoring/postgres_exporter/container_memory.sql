-- How much memory PostgreSQL's container has and may have, from the files of its control
-- group: no exporter outside sees them, and monitor may not read files. The function reads
-- these files only. Run once, when the database is made; on a database that is older:
--   docker compose exec -T postgres psql -U postgres <../../monitoring/postgres_exporter/container_memory.sql
\connect switchyard
CREATE OR REPLACE FUNCTION public.container_memory(OUT used bigint, OUT most bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
  -- Version 2 of control groups, or 1. Without either file: NULL.
  text_most text := coalesce(pg_read_file('/sys/fs/cgroup/memory.max', 0, 65536, true), pg_read_file('/sys/fs/cgroup/memory/memory.limit_in_bytes', 0, 65536, true));
  stat text := coalesce(pg_read_file('/sys/fs/cgroup/memory.stat', 0, 65536, true), pg_read_file('/sys/fs/cgroup/memory/memory.stat', 0, 65536, true));
BEGIN
  -- "max" is no limit, as is what version 1 has for it, about 2^63.
  IF text_most ~ '^[0-9]+' AND text_most::numeric < 2::numeric ^ 60 THEN
    most := text_most::numeric;
  END IF;
  -- What processes have for themselves and what they share; the rest is page cache.
  SELECT sum(m[2]::bigint) INTO used
  FROM regexp_matches(stat, '^(anon|shmem|total_rss|total_shmem) ([0-9]+)$', 'gn') m
  WHERE (stat ~ '\mtotal_rss ') = (m[1] LIKE 'total%');
END $$;
REVOKE ALL ON FUNCTION public.container_memory() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.container_memory() TO monitor;
