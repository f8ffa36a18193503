-- Schema vault as in supabase/vault 0.3 (sql/supabase_vault--0.3.0.sql) with the rights that supabase/postgres gives when the
-- extension is made. A stand-in: the extension seals with a key that the database never shows; here a secret is only turned
-- into Base64, which hides nothing. Names, arguments, owners, rights and the way of a secret are the same.

create schema vault authorization supabase_admin;

create function vault._crypto_aead_det_encrypt(
  message bytea, additional bytea, key_id bigint, context bytea default 'pgsodium', nonce bytea default null
) returns bytea language sql immutable as 'select message';
create function vault._crypto_aead_det_decrypt(
  message bytea, additional bytea, key_id bigint, context bytea default 'pgsodium', nonce bytea default null
) returns bytea language sql immutable as 'select message';

create table vault.secrets (
  id          uuid        primary key default gen_random_uuid(),
  name        text,
  description text        not null default '',
  secret      text        not null,
  key_id      uuid,
  nonce       bytea       default decode(md5(random()::text), 'hex'),
  created_at  timestamptz not null default current_timestamp,
  updated_at  timestamptz not null default current_timestamp
);
comment on table vault.secrets is 'Table with encrypted `secret` column for storing sensitive information on disk.';
create unique index secrets_name_idx on vault.secrets (name) where name is not null;

create view vault.decrypted_secrets as
  select s.id, s.name, s.description, s.secret,
         convert_from(
           vault._crypto_aead_det_decrypt(decode(s.secret, 'base64'), convert_to(s.id::text, 'utf8'), 0, 'pgsodium', s.nonce),
           'utf8'
         ) as decrypted_secret,
         s.key_id, s.nonce, s.created_at, s.updated_at
    from vault.secrets s;

create function vault.create_secret(
  new_secret text, new_name text default null, new_description text default '', new_key_id uuid default null
) returns uuid language plpgsql security definer set search_path = '' as $$
declare
  made uuid := gen_random_uuid();
begin
  insert into vault.secrets (id, secret, name, description)
  values (
    made,
    encode(vault._crypto_aead_det_encrypt(convert_to(new_secret, 'utf8'), convert_to(made::text, 'utf8'), 0), 'base64'),
    new_name,
    new_description
  );
  return made;
end
$$;

create function vault.update_secret(
  secret_id uuid, new_secret text default null, new_name text default null, new_description text default null,
  new_key_id uuid default null
) returns void language sql security definer set search_path = '' as $$
  update vault.secrets s
     set secret      = coalesce(
           encode(vault._crypto_aead_det_encrypt(convert_to(new_secret, 'utf8'), convert_to(s.id::text, 'utf8'), 0), 'base64'),
           s.secret),
         name        = coalesce(new_name, s.name),
         description = coalesce(new_description, s.description),
         updated_at  = now()
   where s.id = secret_id
$$;

alter table vault.secrets owner to supabase_admin;
alter view vault.decrypted_secrets owner to supabase_admin;
alter function vault._crypto_aead_det_encrypt(bytea, bytea, bigint, bytea, bytea) owner to supabase_admin;
alter function vault._crypto_aead_det_decrypt(bytea, bytea, bigint, bytea, bytea) owner to supabase_admin;
alter function vault.create_secret(text, text, text, uuid) owner to supabase_admin;
alter function vault.update_secret(uuid, text, text, text, uuid) owner to supabase_admin;

revoke all on all functions in schema vault from public;
grant usage on schema vault to supabase_postgres with grant option;
grant select, delete, truncate, references on vault.secrets, vault.decrypted_secrets to supabase_postgres with grant option;
grant execute on function vault.create_secret, vault.update_secret, vault._crypto_aead_det_decrypt
  to supabase_postgres with grant option;
grant usage on schema vault to service_role;
grant select, delete on vault.secrets, vault.decrypted_secrets to service_role;
grant execute on function vault.create_secret, vault.update_secret, vault._crypto_aead_det_decrypt to service_role;
