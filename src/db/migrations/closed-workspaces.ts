/**
 * What remains of a workspace that is deleted: its id, which nobody takes again, and what its bills were made of.
 *
 * An id says more than which row: files lie in a folder of that name, and secrets of the Vault are its. Whoever had the id of another, of a user
 * or of a workspace that is gone, would have those.
 *
 * An owner may delete his workspace, and with it go the sums and the subscription by which he owes something: they are copied before.
 */
export const CLOSED_WORKSPACES = `
    -- Without foreign keys: it outlives the workspace, and its owner.
    create table agentd.closed_workspaces (
      id            bigint      generated always as identity primary key,
      workspace_id  uuid        not null,
      owner_user_id uuid        not null,
      closed_at     timestamptz not null default agentd.now(),
      -- rows as they were: of workspace_usage, workspace_usage_counters, workspace_subscriptions and billing_invoices
      periods       jsonb       not null default '[]',
      counters      jsonb       not null default '[]',
      subscriptions jsonb       not null default '[]',
      invoices      jsonb       not null default '[]'
    );
    create index closed_workspaces_workspace_id_idx on agentd.closed_workspaces (workspace_id);
    create index closed_workspaces_closed_at_idx on agentd.closed_workspaces (closed_at);
    comment on table agentd.closed_workspaces is
      'A workspace that was deleted, with the sums, subscriptions and invoices that went with it, for whoever has to bill them.';

    create function agentd.close_workspace() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      insert into agentd.closed_workspaces (workspace_id, owner_user_id, periods, counters, subscriptions, invoices)
      values (
        old.id, old.owner_user_id,
        coalesce((select jsonb_agg(to_jsonb(u) order by u.period_start) from public.workspace_usage u where u.workspace_id = old.id), '[]'),
        coalesce((select jsonb_agg(to_jsonb(c) order by c.month, c.metric) from public.workspace_usage_counters c where c.workspace_id = old.id), '[]'),
        coalesce((select jsonb_agg(to_jsonb(s) order by s.created_at) from public.workspace_subscriptions s where s.workspace_id = old.id), '[]'),
        coalesce((select jsonb_agg(to_jsonb(i) order by i.created_at) from public.billing_invoices i where i.workspace_id = old.id), '[]'));
      return old;
    end
    $$;
    create trigger close_workspace before delete on public.workspaces
      for each row execute function agentd.close_workspace();

    -- Applications may choose the ids of their workspaces, but none that is, or was, somebody else's. A user's own may be his workspace's:
    -- applications do that at sign-up, and what lies in the folder of that name is his already. Not where the Vault has secrets of his: they
    -- would be the workspace's managers' as well.
    --
    -- Asked after the insert: before, one that ends in "on conflict (id) do update" would be refused for a workspace that is there, and one
    -- that waits for somebody's delete would not be told of what that leaves.
    create function agentd.guard_workspace_id() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
    begin
      if agentd.is_service_caller() then
        return new;
      end if;
      if tg_op = 'UPDATE' then
        if new.id = old.id then
          return new;
        end if;
        raise exception 'the id of a workspace does not change' using errcode = 'insufficient_privilege';
      end if;
      if (new.id <> new.owner_user_id and exists (select 1 from auth.users u where u.id = new.id))
         or exists (select 1 from agentd.closed_workspaces c where c.workspace_id = new.id)
         or exists (select 1 from agentd.audit_log a where a.workspace_id = new.id and a.action = 'erase')
         or exists (select 1 from agentd.vault_owners o where o.owner_id = new.id) then
        raise exception 'the id % is a user''s or was another workspace''s', new.id
          using errcode = 'unique_violation', table = 'workspaces', constraint = 'workspaces_pkey',
                hint = 'Leave the id out, or choose a random one.';
      end if;
      return new;
    end
    $$;
    create trigger zz_guard_id before update of id on public.workspaces
      for each row execute function agentd.guard_workspace_id();
    -- before its owner becomes a member
    create trigger a_guard_id after insert on public.workspaces
      for each row execute function agentd.guard_workspace_id();
`;

export const DROP_CLOSED_WORKSPACES = `
    drop trigger a_guard_id on public.workspaces;
    drop trigger zz_guard_id on public.workspaces;
    drop function agentd.guard_workspace_id();
    drop trigger close_workspace on public.workspaces;
    drop function agentd.close_workspace();
    drop table agentd.closed_workspaces;
`;
