/**
 * The language of a trigger's conditions: a jsonb object that is compared with an event's data. There is no expression in it that a
 * database would have to parse, no pattern, and no way to another row.
 *
 *     {"field": value, "path.to.field": {"operator": operand, …}, "and": […], "or": […], "not": {…}}
 *
 * What has passed condition_error is small: 4 kB, five levels. What has not (a row of before) is met by nothing that it doesn't say.
 */

const LARGEST = 4_096;
const DEEPEST = 5;
const LONGEST_LIST = 100;
/** Tests that read a whole text: of one of 20,000 characters 0.4 ms each, and a workspace has fifty triggers. */
const MOST_TEXT_TESTS = 20;
const LONGEST_FIELD = 200;
/** Characters in which `contains` looks; nothing of an event but a webhook's payload has more. */
const LONGEST_TEXT = 65_536;

const OPERATORS =
  'eq, ne, in, not_in, contains, starts_with, ends_with, exists, gt, gte, lt and lte, or a value to be equal to';

export const CONDITION_FUNCTIONS = `
    -- What is wrong with a condition; null: nothing.
    create function agentd.condition_error(p_condition jsonb, p_depth integer default 1) returns text
    language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
    declare
      v_key     text;
      v_value   jsonb;
      v_part    jsonb;
      v_error   text;
      v_op      text;
      v_operand jsonb;
    begin
      if p_depth = 1 and octet_length(p_condition::text) > ${LARGEST} then
        return 'conditions are longer than ${LARGEST} bytes';
      end if;
      if p_depth = 1
         and cardinality(regexp_split_to_array(p_condition::text, '"(contains|starts_with|ends_with)":')) - 1 > ${MOST_TEXT_TESTS} then
        return 'conditions have more than ${MOST_TEXT_TESTS} tests of contains, starts_with and ends_with';
      end if;
      if p_depth > ${DEEPEST} then
        return 'conditions are nested deeper than ${DEEPEST} levels';
      end if;
      if jsonb_typeof(p_condition) is distinct from 'object' then
        return format('conditions are an object of fields, not %s', left(coalesce(p_condition::text, 'null'), 80));
      end if;
      for v_key, v_value in select e.key, e.value from jsonb_each(p_condition) e loop
        if v_key in ('and', 'or') then
          if jsonb_typeof(v_value) <> 'array' or jsonb_array_length(v_value) = 0 then
            return format('"%s" takes a list of conditions', v_key);
          end if;
          for v_part in select e.value from jsonb_array_elements(v_value) e loop
            v_error := agentd.condition_error(v_part, p_depth + 1);
            if v_error is not null then
              return v_error;
            end if;
          end loop;
        elsif v_key = 'not' then
          v_error := agentd.condition_error(v_value, p_depth + 1);
          if v_error is not null then
            return v_error;
          end if;
        elsif length(v_key) > ${LONGEST_FIELD} or '' = any (string_to_array(v_key, '.')) or v_key = '' then
          return format('"%s" is no path of a field', left(v_key, 80));
        elsif jsonb_typeof(v_value) = 'array' then
          return format('the field "%s" is compared with a list: say {"in": […]}', left(v_key, 80));
        elsif jsonb_typeof(v_value) = 'object' then
          if v_value = '{}' then
            return format('the field "%s" has no test', left(v_key, 80));
          end if;
          for v_op, v_operand in select e.key, e.value from jsonb_each(v_value) e loop
            v_error := case
              when v_op in ('eq', 'ne', 'contains') then
                case when jsonb_typeof(v_operand) in ('object', 'array') then 'a text, a number, true, false or null' end
              when v_op in ('in', 'not_in') then
                case when jsonb_typeof(v_operand) <> 'array' or jsonb_array_length(v_operand) not between 1 and ${LONGEST_LIST}
                          or v_operand @? '$[*] ? (@.type() == "object" || @.type() == "array")'
                     then 'a list of 1 to ${LONGEST_LIST} values' end
              when v_op in ('starts_with', 'ends_with') then
                case when jsonb_typeof(v_operand) <> 'string' or v_operand = '""' then 'a text' end
              when v_op = 'exists' then
                case when jsonb_typeof(v_operand) <> 'boolean' then 'true or false' end
              when v_op in ('gt', 'gte', 'lt', 'lte') then
                case when jsonb_typeof(v_operand) not in ('number', 'string') then 'a number or a text' end
              else 'unknown'
            end;
            if v_error = 'unknown' then
              return format('the field "%s" has the test "%s", which there is not. Tests are ${OPERATORS}', left(v_key, 80), left(v_op, 80));
            elsif v_error is not null then
              return format('"%s" of the field "%s" takes %s', v_op, left(v_key, 80), v_error);
            end if;
          end loop;
        end if;
      end loop;
      return null;
    end
    $$;

    -- Whether a field, null where there is none, passes one test.
    create function agentd.meets_test(p_found jsonb, p_op text, p_operand jsonb) returns boolean
    language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
    declare
      v_found   jsonb := coalesce(p_found, 'null');
      v_kind    text := jsonb_typeof(coalesce(p_found, 'null'));
      v_operand text := p_operand #>> '{}';
      v_text    text;
      v_order   integer;
    begin
      -- no more of it than a test reads: the text of a whole payload takes milliseconds to make
      if v_kind = 'string' and p_op not in ('eq', 'ne', 'in', 'not_in', 'exists') then
        v_text := left(v_found #>> '{}', ${LONGEST_TEXT});
      end if;
      case p_op
        when 'eq' then
          return v_found = p_operand;
        when 'ne' then
          return v_found <> p_operand;
        when 'in' then
          return jsonb_typeof(p_operand) = 'array' and v_kind not in ('object', 'array') and p_operand @> jsonb_build_array(v_found);
        when 'not_in' then
          return jsonb_typeof(p_operand) = 'array' and (v_kind in ('object', 'array') or not p_operand @> jsonb_build_array(v_found));
        when 'contains' then
          if v_kind = 'string' then
            return jsonb_typeof(p_operand) = 'string' and strpos(lower(v_text), lower(v_operand)) > 0;
          elsif v_kind = 'array' then
            return jsonb_typeof(p_operand) not in ('object', 'array') and v_found @> jsonb_build_array(p_operand);
          elsif v_kind = 'object' then
            return jsonb_typeof(p_operand) = 'string' and v_found ? v_operand;
          end if;
          return false;
        when 'starts_with' then
          return v_kind = 'string' and starts_with(lower(left(v_text, length(v_operand) * 2)), lower(v_operand));
        when 'ends_with' then
          return v_kind = 'string'
            and right(lower(right(v_found #>> '{}', length(v_operand) * 2)), length(lower(v_operand))) = lower(v_operand);
        when 'exists' then
          return to_jsonb(v_kind <> 'null') = p_operand;
        else
          if p_op not in ('gt', 'gte', 'lt', 'lte') or v_kind not in ('number', 'string') or v_kind <> jsonb_typeof(p_operand) then
            return false;
          end if;
          v_order := case
            when v_kind = 'number' then case when v_found > p_operand then 1 when v_found < p_operand then -1 else 0 end
            when v_text collate "C" > v_operand collate "C" then 1
            when v_text collate "C" < v_operand collate "C" then -1
            else 0 end;
          return case p_op when 'gt' then v_order > 0 when 'gte' then v_order >= 0 when 'lt' then v_order < 0 else v_order <= 0 end;
      end case;
    end
    $$;

    -- Whether an event's data meet a condition. All that stands side by side must hold.
    create function agentd.meets_condition(p_condition jsonb, p_data jsonb) returns boolean
    language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
    declare
      v_key     text;
      v_value   jsonb;
      v_op      text;
      v_operand jsonb;
      v_part    jsonb;
      v_is_met  boolean;
    begin
      if jsonb_typeof(p_condition) is distinct from 'object' then
        return false;
      end if;
      for v_key, v_value in select e.key, e.value from jsonb_each(p_condition) e loop
        if v_key in ('and', 'or') then
          v_is_met := v_key = 'and';
          if jsonb_typeof(v_value) <> 'array' then
            return false;
          end if;
          for v_part in select e.value from jsonb_array_elements(v_value) e loop
            v_is_met := agentd.meets_condition(v_part, p_data);
            exit when v_is_met = (v_key = 'or');
          end loop;
          if not v_is_met then
            return false;
          end if;
        elsif v_key = 'not' then
          if agentd.meets_condition(v_value, p_data) then
            return false;
          end if;
        else
          for v_op, v_operand in
            select e.key, e.value
              from jsonb_each(case jsonb_typeof(v_value) when 'object' then v_value else jsonb_build_object('eq', v_value) end) e
          loop
            if not agentd.meets_test(p_data #> string_to_array(v_key, '.'), v_op, v_operand) then
              return false;
            end if;
          end loop;
        end if;
      end loop;
      return true;
    end
    $$;
`;

export const DROP_CONDITION_FUNCTIONS = `
    drop function agentd.meets_condition(jsonb, jsonb);
    drop function agentd.meets_test(jsonb, text, jsonb);
    drop function agentd.condition_error(jsonb, integer);
`;
