-- Schema storage after the migrations of supabase/storage (migrations/tenant), as far as an application meets it; rights as in
-- supabase/postgres (init-scripts/00000000000002-storage-schema.sql, revoke_admin_roles_from_postgres).

create schema storage authorization supabase_admin;
grant usage on schema storage to anon, authenticated, service_role;
grant usage on schema storage to supabase_postgres with grant option;
grant all on schema storage to supabase_storage_admin, dashboard_user;

create table storage.buckets (
  id                 text        not null primary key,
  name               text        not null,
  owner              uuid,
  created_at         timestamptz default now(),
  updated_at         timestamptz default now(),
  public             boolean     default false,
  avif_autodetection boolean     default false,
  file_size_limit    bigint,
  allowed_mime_types text[],
  owner_id           text
);
create unique index bname on storage.buckets (name);

create table storage.objects (
  id               uuid        not null primary key default gen_random_uuid(),
  bucket_id        text        constraint "objects_bucketId_fkey" references storage.buckets (id),
  name             text,
  owner            uuid,
  created_at       timestamptz default now(),
  updated_at       timestamptz default now(),
  last_accessed_at timestamptz default now(),
  metadata         jsonb,
  path_tokens      text[]      generated always as (string_to_array(name, '/')) stored,
  version          text,
  owner_id         text,
  user_metadata    jsonb
);
create unique index bucketid_objname on storage.objects (bucket_id, name);
create index name_prefix_search on storage.objects (name text_pattern_ops);

create function storage.foldername(name text) returns text[] language plpgsql immutable as $$
declare
  parts text[] := string_to_array(name, '/');
begin
  return parts[1:array_length(parts, 1) - 1];
end
$$;
create function storage.filename(name text) returns text language plpgsql immutable as $$
declare
  parts text[] := string_to_array(name, '/');
begin
  return parts[array_length(parts, 1)];
end
$$;
create function storage.extension(name text) returns text language plpgsql immutable as $$
begin
  return reverse(split_part(reverse(storage.filename(name)), '.', 1));
end
$$;

alter table storage.buckets owner to supabase_storage_admin;
alter table storage.objects owner to supabase_storage_admin;
alter function storage.foldername(text) owner to supabase_storage_admin;
alter function storage.filename(text) owner to supabase_storage_admin;
alter function storage.extension(text) owner to supabase_storage_admin;
alter table storage.buckets enable row level security;
alter table storage.objects enable row level security;
grant all on storage.buckets, storage.objects to supabase_postgres with grant option;
grant all on storage.buckets, storage.objects to anon, authenticated, service_role;
